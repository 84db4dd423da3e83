"""What a user can mend: an error says the value, the rule it breaks, the place and the way out.

The commands show these as one message; every other exception is a fault of the program and keeps its traceback.
"""


class InputError(ValueError):
    """Something that was given cannot be used; the message names the value, the rule, the place and the way out."""


class EvaluationError(InputError):
    """Predictions or ground truth that cannot be scored; the message names the file, image or segment and the remedy."""


class TrainingError(InputError):
    """Training cannot go on; the message says at which step and image, and what to try."""


class DataError(InputError):
    """A data set that cannot be read or written as asked; the message names the place and the way out."""


class SegmentMapError(DataError):
    """An annotation PNG that cannot be read as an id map."""


class PictureError(DataError):
    """An image that cannot be read, drawn on or written."""


class CategoryError(InputError):
    """A category list that cannot be used, or two that do not fit together."""


class ShapeError(InputError):
    """A tensor of a shape that its place does not allow."""


class MergeError(InputError):
    """Arguments that do not fit together or lie outside their range."""


class AttentionError(InputError):
    """A question about attention that this model has no answer to."""


class ConfigError(InputError):
    """A setting that does not exist, has the wrong type, or breaks a rule."""


class OfficialWeightsError(InputError):
    """A state dict that does not belong to the model."""


class BackboneWeightsError(InputError):
    """A file that holds no weights of this backbone."""


class WeightsUnavailableError(OSError):
    """Published weights that are neither cached nor reachable."""


class CheckpointError(InputError):
    """A file that is no checkpoint, cannot be read or written, or belongs to something else."""

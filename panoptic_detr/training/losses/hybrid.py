"""Hybrid matching (H-DETR): one-to-many supervision beside or before one-to-one supervision.

Three schemes of the paper (section 3): a second group of queries ("branch"), the first epochs ("epoch"), the first decoder
layers ("layer"). A decoder layer that is matched one-to-many sees every object K times.
"""

from dataclasses import dataclass
from typing import Literal

from panoptic_detr.errors import InputError

Scheme = Literal["none", "branch", "epoch", "layer"]


@dataclass(frozen=True)
class HybridMatching:
    """Which layers are matched one-to-many, and how often.

    Attributes:
        scheme: "none" is plain one-to-one matching.
        repeats: K, how often each object is matched one-to-many (paper: 6).
        weight: lambda, the weight of the one-to-many branch (paper: 1).
        epoch_share: rho, for "epoch": the share of the training that is one-to-many.
        one_to_many_layers: L1, for "layer": the first decoder layers that are one-to-many. The last one never is: its queries
            are the result.

    Raises:
        InputError: an unknown scheme, or a number that makes no sense.
    """

    scheme: Scheme = "none"
    repeats: int = 6
    weight: float = 1.0
    epoch_share: float = 2 / 3
    one_to_many_layers: int = 3

    def __post_init__(self) -> None:
        if self.scheme not in ("none", "branch", "epoch", "layer"):
            raise InputError(f"hybrid must be 'none', 'branch', 'epoch' or 'layer', but got {self.scheme!r}")
        if self.repeats < 1:
            raise InputError(f"one_to_many_repeats must be at least 1, but got {self.repeats}")
        if self.weight < 0:
            raise InputError(f"one_to_many_weight must be at least 0, but got {self.weight}")
        if not 0 <= self.epoch_share <= 1:
            raise InputError(f"one_to_many_share is a share of the training, 0 to 1, but got {self.epoch_share}")
        if self.one_to_many_layers < 0:
            raise InputError(f"one_to_many_layers must be at least 0, but got {self.one_to_many_layers}")

    def main_repeats(self, num_layers: int, progress: float) -> list[int]:
        """How often each object is matched in each decoder layer of the main queries.

        Args:
            num_layers: L.
            progress: share of the training that is done, 0..1.
        """
        if self.scheme == "epoch" and progress < self.epoch_share:
            return [self.repeats] * num_layers
        if self.scheme == "layer":
            first = min(self.one_to_many_layers, num_layers - 1)
            return [self.repeats] * first + [1] * (num_layers - first)
        return [1] * num_layers

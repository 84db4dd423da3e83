"""Known ways for a training to go wrong, recognised from its numbers, each with what to try."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panoptic_detr.structures import DetectorOutput

FIRST_STEP = 500
WINDOW = 100
FLAT_SHARE = 0.97
LEAST_CONFIDENCE = 0.05
LEAST_SPREAD = 0.01
EMPTY_DICE = 0.97

VAL_LOSS = "val loss"  # among the scores of an evaluation
RISEN = 1.05  # times its lowest: the loss of other images has turned
FALLING = 0.97  # times that of an earlier evaluation
WIDE, NARROW = 1.5, 1.1  # validation loss as a multiple of the training loss
LEARNING = {
    "over": "overfitting: since step {turn} the training loss has fallen ({train_then:.3f} to {train:.3f}) while that of "
    "validation images has risen ({lowest:.3f} to {val:.3f}); best.pt has the best scores so far; stronger augmentation, "
    "more images, fewer steps, or frozen backbone stages (model.overrides.trained_stages) help",
    "gap": "the loss of validation images ({val:.3f}) is far above that of training images ({train:.3f}), but does not rise: "
    "more images or stronger augmentation would help more than more steps",
    "under": "underfitting: training and validation loss ({train:.3f}, {val:.3f}) are alike and still fall; more steps "
    "(train.steps), then a higher optimizer.lr or a larger model, would help",
    "fits": "training and validation loss ({train:.3f}, {val:.3f}) do not drift apart",
}

VITAL_SIGNS = ("confidence", "box_spread")
ADVICE = {
    "flat": "the loss is as high as at the start; look at samples.png, try a third or three times optimizer.lr, train without "
    "ImageNet weights only with backbone_norm: batch, and check that a few images can be learned (--train.overfit 4)",
    "no object": "the detector calls everything no-object; train longer, raise optimizer.lr, or start from trained weights "
    "(model.weights, pretrained_backbone: true)",
    "collapsed": "all queries predict the same box; lower optimizer.lr, lengthen optimizer.warmup, lower optimizer.clip_norm",
    "empty masks": "the masks stay empty; raise loss.mask_dice_weight or optimizer.lr, set mask_output_bias nearer to 0, and "
    "check that the detector finds its objects",
}


def shown_score(name: str, value: float) -> str:
    """A score of an evaluation as people read it: in per cent; losses as they are."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name.endswith("loss") else f"{100 * value:.1f}"


@torch.no_grad()
def vital_signs(output: DetectorOutput) -> dict[str, Tensor]:
    """What tells a healthy detector from a failing one, as scalars.

    Returns:
        `confidence`: probability of the best query of an image, mean over the images; `box_spread`: standard deviation of the
        box centres over the queries, as a fraction of the image.
    """
    return {
        "confidence": output.probabilities().flatten(1).amax(1).mean(),
        "box_spread": output.boxes[-1, ..., :2].float().std(1, correction=0).mean(),
    }


class Diagnosis:
    """Watches the numbers of a run and speaks up once for each known failure.

    Args:
        total_steps: of the run; nothing is said before its first quarter is over.
        first_losses: of the run's first steps, filled here; a run that is continued brings its own.
    """

    def __init__(self, total_steps: int, first_losses: list[float]) -> None:
        self._first_step = max(FIRST_STEP, total_steps // 4)
        self._first_losses = first_losses
        self._window: dict[str, list[float]] = {}
        self._said: set[str] = set()

    def note(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in the losses and vital signs of a step, but for what is not finite; returns new diagnoses, ready to print."""
        if step <= WINDOW and math.isfinite(values["loss"]):
            self._first_losses.append(values["loss"])
        for name in ("loss", "confidence", "box_spread", "mask_dice"):
            if math.isfinite(values.get(name, math.nan)):
                self._window.setdefault(name, []).append(values[name])
        if step % WINDOW:
            return []
        means = {name: sum(recent) / len(recent) for name, recent in self._window.items()}
        self._window = {}
        if step < self._first_step:
            return []
        new = [failure for failure in self._failures(means) if failure not in self._said]
        self._said.update(new)
        return [f"step {step}: {ADVICE[failure]}" for failure in new]

    def _failures(self, means: Mapping[str, float]) -> list[str]:
        start = sum(self._first_losses) / len(self._first_losses) if self._first_losses else math.inf
        found = {
            "flat": means.get("loss", 0.0) > FLAT_SHARE * start,
            "no object": means.get("confidence", 1.0) < LEAST_CONFIDENCE,
            "collapsed": means.get("box_spread", 1.0) < LEAST_SPREAD,
            "empty masks": means.get("mask_dice", 0.0) > EMPTY_DICE,
        }
        return [failure for failure, is_so in found.items() if is_so]


def learning_verdict(curve: Sequence[tuple[int, float, float]]) -> tuple[str, str]:
    """Tell over- from underfitting by the curves of both losses.

    Args:
        curve: (step, mean training loss since the evaluation before, validation loss) of every evaluation, in order.

    Returns:
        `over`, `gap`, `under` or `fits`, and the sentence that says so; ("", "") of fewer than three evaluations, or of
        losses that are not finite.
    """
    if len(curve) < 3 or not all(math.isfinite(value) for row in curve for value in row):
        return "", ""
    turn, train_then, lowest = min(curve, key=lambda row: row[2])
    _, train, val = curve[-1]
    earlier = curve[-1 - max(1, len(curve) // 3)]
    if val > RISEN * lowest and train < train_then and all(row[2] > RISEN * lowest for row in curve[-2:]):
        kind = "over"
    elif val > WIDE * train:
        kind = "gap"
    elif val < NARROW * train and val < FALLING * earlier[2] and train < FALLING * earlier[1]:
        kind = "under"
    else:
        kind = "fits"
    values = {"turn": turn, "train_then": train_then, "train": train, "lowest": lowest, "val": val}
    return kind, LEARNING[kind].format(**values)


def overfit_verdict(scores: Mapping[str, float]) -> str:
    """What the final scores on the training images themselves say about data, model and losses."""
    name, value = next(iter(scores.items()))
    if math.isnan(value):
        return f"overfit: no verdict, because {name} is undefined on these images: they have nothing that it counts"
    subject = "masks, boxes and classes" if name.startswith("PQ") else "boxes and classes"
    if value >= 0.6:
        return f"overfit: {subject} can be learned ({name} {100 * value:.1f} on the training images)"
    return (
        f"overfit: {subject} were not learned ({name} {100 * value:.1f} on the training images); train longer, then suspect "
        "the annotations (samples.png), the learning rate and the number of queries, in this order"
    )

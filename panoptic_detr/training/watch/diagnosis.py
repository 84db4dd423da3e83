"""Known ways for a training to go wrong, recognised from its numbers, each with what to try."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from panoptic_detr.structures import DetectorOutput

FIRST_STEP = 500
WINDOW = 100
FLAT_SHARE = 0.97
LEAST_CONFIDENCE = 0.05
LEAST_SPREAD = 0.01
EMPTY_DICE = 0.97

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

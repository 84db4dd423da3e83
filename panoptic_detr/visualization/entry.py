"""One image with what is known about it, and the sheet that shows it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw import Palette, overlay, side_by_side
from panoptic_detr.visualization.errors import error_view

Show = Literal["all", "truth", "prediction", "errors"]


@dataclass(frozen=True)
class Entry:
    """An image, its annotation and a prediction; one of the latter two may be missing.

    Attributes:
        name: what to call it: the file name, say.
        image: (H, W, 3) uint8 RGB.
        truth: the annotation.
        prediction: what a model says.
    """

    name: str
    image: np.ndarray
    truth: PanopticSegmentation | None = None
    prediction: PanopticSegmentation | None = None


def draw_entry(
    entry: Entry, *, show: Show = "all", palette: Palette = "distinct", alpha: float = 0.5, scale: int = 1
) -> np.ndarray:
    """Draw what is there: the annotation, the prediction, and with both also the errors.

    Args:
        entry: the image.
        show: "all" sets everything there is side by side; the others draw one picture.
        palette: see `overlay`.
        alpha: see `overlay`.
        scale: see `overlay`.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        PictureError: the entry lacks what `show` asks for.
    """
    pictures = {}
    if entry.truth is not None and show in ("all", "truth"):
        pictures["ground truth"] = overlay(entry.image, entry.truth, palette=palette, alpha=alpha, scale=scale)
    if entry.prediction is not None and show in ("all", "prediction"):
        pictures["prediction"] = overlay(entry.image, entry.prediction, palette=palette, alpha=alpha, scale=scale)
    if entry.truth is not None and entry.prediction is not None and show in ("all", "errors"):
        pictures["errors"] = error_view(entry.image, entry.prediction, entry.truth, scale=scale)
    if not pictures:
        needed = {"errors": "both ground truth and a prediction", "all": "ground truth or a prediction"}.get(show, f"a {show}")
        raise PictureError(f"{entry.name}: drawing {show!r} needs {needed}")
    return side_by_side(list(pictures.values()), list(pictures)) if len(pictures) > 1 else next(iter(pictures.values()))

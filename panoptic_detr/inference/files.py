"""Pictures to predict on disk, and predictions as COCO-panoptic files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import DataError
from panoptic_detr.files import make_folder, write_whole
from panoptic_detr.images import save_picture
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw import enlargement, overlay

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class PictureFile:
    """A picture to predict.

    Attributes:
        path: where it lies.
        image_id: its number; that of its name where all names are different numbers, as COCO's are.
        name: file name without ending for what is written about it; unique.
    """

    path: Path
    image_id: int
    name: str


def find_pictures(places: Sequence[str | Path]) -> list[PictureFile]:
    """List pictures in the order given, those of a folder by name (folders in it are not searched).

    A path that does not exist is listed too: reading it says what is wrong.

    Raises:
        DataError: a folder without pictures.
    """
    paths = [path for place in places for path in _pictures_in(Path(place))]
    numbers = {int(path.stem) for path in paths if path.stem.isdecimal()}
    numbered = len(numbers) == len(paths)
    taken: set[str] = set()
    return [
        PictureFile(path, int(path.stem) if numbered else index, unique_name(path.stem, taken))
        for index, path in enumerate(paths, start=1)
    ]


class PredictionFolder:
    """A folder of predictions: `predictions.json`, `panoptic/<name>.png` (segment ids), `overlays/<name>.jpg`.

    Args:
        folder: made if it is missing.
        categories: what the predictions mean.
        overlays: draw each prediction over its picture.

    Raises:
        DataError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path, categories: CategoryTable, *, overlays: bool = True) -> None:
        self.folder = prepare_folder(folder, overlays=overlays)
        self.categories = categories
        self.overlays = overlays
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file: PictureFile, picture: np.ndarray, segmentation: PanopticSegmentation) -> None:
        """Write the pictures of one prediction and note its JSON entries.

        Args:
            file: what was predicted.
            picture: (H, W, 3) uint8 RGB.
            segmentation: the prediction, of the same size.
        """
        segmentation.save(self.folder / "panoptic" / f"{file.name}.png")
        height, width = picture.shape[:2]
        if self.overlays:
            drawn = overlay(picture, segmentation, scale=enlargement(picture.shape))
            save_picture(self.folder / "overlays" / f"{file.name}.jpg", drawn)
        self.images.append({"id": file.image_id, "file_name": file.path.name, "height": height, "width": width})
        self.annotations.append(segmentation.to_coco(file.image_id, f"{file.name}.png"))

    def finish(self) -> Path:
        """Write `predictions.json` of all that was added; it appears complete or not at all."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories.to_coco()}
        path = self.folder / "predictions.json"
        write_whole(path, json.dumps(content, ensure_ascii=False).encode())
        return path


def prepare_folder(folder: str | Path, *, overlays: bool = True) -> Path:
    """Make the folders that predictions are written to, so that a mistake shows before any work is done.

    Raises:
        DataError: one cannot be made or written to.
    """
    for part in ("", "panoptic", *(["overlays"] if overlays else [])):
        make_folder(Path(folder) / part)
    return Path(folder)


def _pictures_in(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
    if not found:
        raise DataError(f"{place}: no pictures in this folder (looked for {', '.join(PICTURE_ENDINGS)})")
    return found


def unique_name(stem: str, taken: set[str]) -> str:
    """A file name that no other picture has, not even on file systems that ignore case."""
    name, count = stem, 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name.lower())
    return name

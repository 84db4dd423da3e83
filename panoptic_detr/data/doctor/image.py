"""The doctor looks at one image: its file, its PNG, its segments; and writes the repaired copy if one is wanted."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from panoptic_detr.categories import Category
from panoptic_detr.data.coco import DataPaths, find_image, with_ending
from panoptic_detr.data.coco.defects import Defect, ImageId, show
from panoptic_detr.data.coco.entries import Entry, slashed
from panoptic_detr.data.doctor.files import readings
from panoptic_detr.data.doctor.segments import examine_segments, listed_ids
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.files import safe_path
from panoptic_detr.images import exif_orientation, place_image, read_image
from panoptic_detr.segment_maps import png_kind, read_id_png, write_id_png


@dataclass(frozen=True)
class ImageTask:
    """One image for the doctor to look at."""

    entry: Entry  # of the JSON's `images`; its id is usable
    annotation: Entry | None  # of the JSON's `annotations`; None if it has none
    broken: bool  # the JSON already shows a defect of this image that cannot be repaired

    @property
    def image_id(self) -> ImageId:
        """The image's id."""
        return self.entry["id"]


@dataclass(frozen=True)
class Check:
    """What is the same for all images of a split."""

    paths: DataPaths  # where the split lies
    split: str  # its name
    categories: dict[int, Category]  # the usable ones by id
    void_share: float = 0.5  # a larger share of void is noted
    fixed: DataPaths | None = None  # where the repaired copy goes; None: no copy
    copy_images: bool = False  # copy the images into it instead of linking to them


@dataclass
class Findings:
    """What one image has to say."""

    image_id: ImageId  # which image
    defects: list[Defect] = field(default_factory=list)  # everything that is wrong with it
    name: str = ""  # its file name as far as it can be used
    digest: bytes = b""  # of the bytes of the image file; empty if there is none
    size: tuple[int, int] | None = None  # (height, width) of the stored image; None if it cannot be read
    # (S, 3) int64: category_id, pixels, iscrowd of the segments that have pixels and a known category
    segments: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    void: int = 0  # pixels of no segment
    # entries of `images` and `annotations` for the repaired copy; None: it cannot be repaired, or no copy is made
    repaired: tuple[Entry, Entry] | None = None


def examine(task: ImageTask, check: Check) -> Findings:
    """Look at one image; nothing in the files raises.

    Raises:
        DataError, OSError: the repaired copy cannot be written.
    """
    examination = _Examination(task, check)
    examination.run()
    if check.fixed is not None and examination.mended():
        examination.write(check.fixed)
    return examination.findings


class _Examination:
    """The state while one image is looked at: its files, and the entries as they would be repaired."""

    def __init__(self, task: ImageTask, check: Check) -> None:
        self.task, self.check = task, check
        self.findings = Findings(task.image_id)
        self.entry, self.annotation = _slashed(task.entry), _slashed(task.annotation or {})
        self.image_path: Path | None = None
        self.png_path: Path | None = None
        self.ids: np.ndarray | None = None  # (H, W) int32, repaired step by step
        self.redraw = False  # the PNG must be written anew

    def add(self, kind: str, what: str, file: Path | str = "", *, repairable: bool = False) -> None:
        self.place(Defect(kind, what, repairable=repairable), file)

    def place(self, defect: Defect, file: Path | str = "") -> None:
        file = str(file or self.check.paths.annotations)
        self.findings.defects.append(replace(defect, split=self.check.split, image_id=self.task.image_id, file=file))

    def run(self) -> None:
        self._look_at_image()
        if self.task.annotation is None:
            return
        self._look_at_png()
        self._compare_sizes()
        if isinstance(self.annotation.get("segments_info"), list):
            self._look_at_segments(self.annotation["segments_info"])

    def mended(self) -> bool:
        """Whether everything that is wrong can be repaired."""
        errors = (row for row in self.findings.defects if row.severity == "error")
        return not self.task.broken and self.ids is not None and all(row.repairable for row in errors)

    def write(self, fixed: DataPaths) -> None:
        """Write the repaired PNG, place the image, and keep the entries for the JSON."""
        if self.image_path is None or self.png_path is None or self.ids is None:
            return
        self.annotation["file_name"] = with_ending(self.annotation["file_name"], ".png")
        place_image(self.image_path, fixed.images, self.entry["file_name"], copy=self.check.copy_images)
        place_image(self.png_path, fixed.panoptic, self.annotation["file_name"], copy=True)
        if self.redraw:
            write_id_png(safe_path(fixed.panoptic, self.annotation["file_name"], "output"), self.ids)
        self.findings.repaired = self.entry, self.annotation

    def _look_at_image(self) -> None:
        name = self.entry.get("file_name")
        if not _is_safe(name):
            return
        try:
            path = self.image_path = find_image(self.check.paths.images, name, "")
        except DataError:
            self.add("image_missing", "there is no such file, also not with another ending", self.check.paths.images / name)
            return
        self.findings.name = name
        try:
            picture, data = read_image(path), path.read_bytes()
        except (DataError, OSError) as error:
            self.add("image_unreadable", _reason(error, path), path)
            return
        self._note_image(name, path, data, picture.shape[:2])

    def _note_image(self, name: str, path: Path, data: bytes, size: tuple[int, int]) -> None:
        """What a readable image shows."""
        self.findings.digest, self.findings.size = hashlib.blake2b(data, digest_size=16).digest(), size
        if path.name != Path(name).name:
            self.add("image_ending", f"the JSON says {show(name)}, but the file is {path.name}", path, repairable=True)
            self.entry["file_name"] = path.relative_to(self.check.paths.images).as_posix()
        if (turned := exif_orientation(data)) != 1:
            self.add("exif_rotation", f"EXIF orientation {turned}; the stored picture is {size[1]}x{size[0]}", path)
        stated = (self.entry.get("height"), self.entry.get("width"))
        if stated != size or any(isinstance(value, bool) for value in stated):
            what = f"the JSON says {show(stated[1])}x{show(stated[0])}, but the image is {size[1]}x{size[0]}"
            self.add("image_size", what, path, repairable=True)
            self.entry["height"], self.entry["width"] = size

    def _look_at_png(self) -> None:
        name = self.annotation.get("file_name")
        if not _is_safe(name):
            return
        path = safe_path(self.check.paths.panoptic, name, "")
        if not os.path.isfile(path):
            self.add("png_missing", "there is no such file", path)
            return
        self.png_path = path
        try:
            data = path.read_bytes()
            kind = png_kind(data)
            self.ids = read_id_png(path) if kind == "RGB" else self._other_reading(path, data, kind)
        except (SegmentMapError, OSError) as error:
            self.add("png_unreadable", _reason(error, path), path)

    def _other_reading(self, path: Path, data: bytes, kind: str) -> np.ndarray | None:
        """The id map of an annotation of the wrong kind, where exactly the JSON's ids come out of one way to read it."""
        maps = readings(data)
        if not maps:
            raise SegmentMapError(f"{path}: not a readable picture")
        wanted = listed_ids(self.annotation.get("segments_info"))
        fits = next((ids for ids in maps if set(np.unique(ids).tolist()) - {0} == wanted), None)
        self.redraw = fits is not None
        self.add("png_format", f"it is {kind}", path, repairable=fits is not None)
        return fits

    def _compare_sizes(self) -> None:
        size, ids = self.findings.size, self.ids
        if size is None or ids is None or ids.shape == size:
            return
        height, width = ids.shape
        turned = " (the size of the picture as EXIF turns it)" if (width, height) == size else ""
        what = f"the image is {size[1]}x{size[0]}, but its PNG is {width}x{height}{turned}"
        self.add("png_size", what, self.png_path or "")

    def _look_at_segments(self, rows: list[object]) -> None:
        report = examine_segments(rows, self.ids, self.check.categories)
        for defect in report.defects:
            self.place(defect, self.png_path or "" if defect.in_png else "")
        if self.ids is None or report.ids is None:
            return
        self.redraw = self.redraw or report.ids is not self.ids
        self.ids, self.annotation["segments_info"] = report.ids, report.rows
        self.findings.segments, self.findings.void = report.statistics(self.check.categories), report.void
        share = report.void / max(1, self.ids.size)
        if share > self.check.void_share:
            self.add("void_share", f"{share:.0%} of the pixels are void", self.png_path or "")


def _slashed(entry: Entry) -> Entry:
    """A copy that may be repaired, its file name with slashes only."""
    name = entry.get("file_name")
    return {**entry, "file_name": slashed(name)} if isinstance(name, str) else dict(entry)


def _is_safe(name: object) -> TypeGuard[str]:
    """Whether a file name stays in its folder; if not, the listing has said so."""
    try:
        return isinstance(name, str) and bool(safe_path("", name, ""))
    except DataError:
        return False


def _reason(error: Exception, path: Path) -> str:
    """The error's own words without the path, which is said already, and without the remedy."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.removeprefix(f"{path}: ").partition(";")[0]

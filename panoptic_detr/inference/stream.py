"""Predictions of many pictures as COCO-panoptic files: written as they come, so that no end of the process loses any.

Each picture's PNG (whole or not at all) is followed by a line in `predictions.jsonl`. `finish` makes `predictions.json` of the
lines. Until then the same settings and the same pictures go on with what is missing, and others are refused.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import DataError
from panoptic_detr.files import locked_folder, make_folder, remove_stale_temporaries, write_json, write_whole
from panoptic_detr.images import save_picture
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw import enlargement, overlay

Json: TypeAlias = dict[str, object]


class PredictionFolder:
    """A folder of predictions: `predictions.json`, `panoptic/<name>.png` (segment ids), `overlays/<name>.jpg`.

    Use it in a `with` block, which keeps other processes out of the folder.

    Args:
        folder: made if it is missing.
        categories: what the predictions mean.
        overlays: draw each prediction over its picture.
        made_by: what the predictions depend on, as plain values; an output that was started with others is refused.

    Attributes:
        found: segments by category id, of all pictures so far.

    Raises:
        DataError: the folder cannot be made or written to, or was started otherwise.
    """

    def __init__(
        self,
        folder: str | Path,
        categories: CategoryTable,
        *,
        overlays: bool = True,
        made_by: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = prepare_folder(folder, overlays=overlays)
        self.categories, self.overlays = categories, overlays
        self.lines = self.folder / "predictions.jsonl"
        self.found: Counter[int] = Counter()
        self._head: Json = json.loads(json.dumps({"overlays": overlays, **(made_by or {})}))
        self._done: dict[str, int] = {}  # name of a picture to the place of its line
        self._lock = locked_folder(self.folder)

    def __enter__(self) -> "PredictionFolder":
        try:
            self._lock.__enter__()
        except BlockingIOError:
            raise DataError(f"{self.folder}: another process writes predictions here; choose another output folder") from None
        for place in (self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())):
            remove_stale_temporaries(place)
        if self.lines.is_file():
            self._go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, file: PictureFile) -> bool:
        return file.name in self._done

    def add(self, file: PictureFile, picture: np.ndarray, segmentation: PanopticSegmentation) -> None:
        """Write one prediction: its pictures first, then its line.

        Args:
            file: what was predicted.
            picture: (H, W, 3) uint8 RGB.
            segmentation: the prediction, of the same size.
        """
        height, width = picture.shape[:2]
        segmentation.save(_place(self.folder / "panoptic" / f"{file.name}.png"))
        if self.overlays:
            drawn = overlay(picture, segmentation, scale=enlargement(picture.shape))
            save_picture(_place(self.folder / "overlays" / f"{file.name}.jpg"), drawn)
        image = {"id": file.image_id, "file_name": file.file_name or file.path.name, "height": height, "width": width}
        annotation = segmentation.to_coco(file.image_id, f"{file.name}.png")
        if not self._done:
            (self.folder / "predictions.json").unlink(missing_ok=True)  # of other predictions
        with open(self.lines, "ab") as stream:
            if stream.tell() == 0:
                stream.write(_line({"made_by": self._head}))
            self._note(file.name, stream.tell(), annotation)
            stream.write(_line({"name": file.name, "image": image, "annotation": annotation}))

    def finish(self, order: Iterable[PictureFile] | None = None) -> Path:
        """Write `predictions.json`, whole or not at all, in the given order (that of writing by default)."""
        path = self.folder / "predictions.json"
        names = list(self._done) if order is None else [file.name for file in order if file.name in self._done]
        lists = {f"{kind}s": self._rows(names, kind) for kind in ("image", "annotation")}

        def write(stream: BinaryIO) -> None:
            text = io.TextIOWrapper(stream, encoding="utf-8")
            write_json(text, {}, {**lists, "categories": self.categories.to_coco()})
            text.detach()  # flushed, and left open for the rename

        write_whole(path, write)
        self.lines.unlink(missing_ok=True)
        return path

    def _go_on(self) -> None:
        """Read what a process that was stopped has left; half a line at the end is cut off."""
        with open(self.lines, "r+b") as stream:
            start = 0
            for number, line in enumerate(stream):
                if not line.endswith(b"\n"):
                    break
                row = self._read(line, number)
                if number == 0:
                    self._check_head(row.get("made_by"))
                else:
                    self._note(*self._entry(row, number, start))
                start += len(line)
            stream.truncate(start)

    def _entry(self, row: Mapping[str, Any], number: int, start: int) -> tuple[str, int, Any]:
        if "name" not in row or "annotation" not in row:
            raise DataError(f"{self.lines}: line {number + 1} is damaged; remove the file to start anew")
        return row["name"], start, row["annotation"]

    def _read(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(line)
            return row if isinstance(row, dict) else {}
        except ValueError:
            raise DataError(f"{self.lines}: line {number + 1} is damaged; remove the file to start anew") from None

    def _check_head(self, started: object) -> None:
        before = started if isinstance(started, dict) else {}
        for key in {**before, **self._head}:
            if before.get(key) != self._head.get(key):
                raise DataError(
                    f"{self.folder}: this output was started with other {key}: {_told(before.get(key))} then, "
                    f"{_told(self._head.get(key))} now; choose another output folder, or remove {self.lines.name} to start anew"
                )

    def _note(self, name: str, place: int, annotation: Mapping[str, Any]) -> None:
        self._done[name] = place
        self.found.update(segment["category_id"] for segment in annotation["segments_info"])

    def _rows(self, names: Iterable[str], kind: str) -> Iterator[Mapping[str, Any]]:
        if not self._done:
            return
        with open(self.lines, "rb") as stream:
            for name in names:
                stream.seek(self._done[name])
                yield json.loads(stream.readline())[kind]


def list_digest(files: Iterable[PictureFile]) -> str:
    """What tells one list of pictures with their ids from another."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((str(file.path), file.image_id, file.name)).encode())
    return digest.hexdigest()[:16]


def prepare_folder(folder: str | Path, *, overlays: bool = True) -> Path:
    """Make the folders that predictions are written to, so that a mistake shows before any work is done.

    Raises:
        DataError: one cannot be made or written to.
    """
    for part in ("", "panoptic", *(["overlays"] if overlays else [])):
        make_folder(Path(folder) / part)
    return Path(folder)


def _place(path: Path) -> Path:
    make_folder(path.parent)
    return path


def _line(row: Json) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _told(value: object) -> str:
    return "none" if value is None else str(value)[:120]

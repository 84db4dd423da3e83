"""Predictions of many pictures as COCO-panoptic files: written as they come, so that no end of the process loses any.

Each picture's PNG (whole or not at all) is followed by a line in `predictions.jsonl`. `finish` makes `predictions.json` of the
lines. Until then the same settings and the same pictures go on with what is missing, and others are refused. Processes that
share the pictures write lines of their own, `predictions.<part>.jsonl`, which the first of them joins.
"""

import hashlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import DataError
from panoptic_detr.files import locked_folder, make_folder, remove_stale_temporaries, write_json, write_whole
from panoptic_detr.images import save_picture
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.rasters import Raster, reduced, write_id_tiff
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import read_id_png
from panoptic_detr.visualization.draw import enlargement, overlay

Json: TypeAlias = dict[str, object]
Row: TypeAlias = Mapping[str, Any]  # what a line of the list says
FAILURES = "failures.json"
_MOST_LABELS = 200  # on an overlay
_PLACE_BITS = 48  # a place in the files of lines is one number: which file, and in these bits where in it


@dataclass(frozen=True)
class Failure:
    """A picture that could not be predicted.

    Attributes:
        path: of the picture, as it can be written down.
        image_id: of the picture.
        reason: what is wrong, and the way out.
    """

    path: str
    image_id: int | str
    reason: str

    @classmethod
    def of(cls, file: PictureFile, reason: str) -> "Failure":
        """The failure of a picture; bytes of its path that are no text are told by their numbers."""
        return cls(os.fsencode(file.path).decode(errors="backslashreplace"), file.image_id, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class PredictionFolder:
    """A folder of predictions: `predictions.json`, `panoptic/<name>.png` (segment ids), `overlays/<name>.jpg`.

    Use it in a `with` block, which keeps other processes out of the folder. Threads may add pictures at the same time.

    Args:
        folder: made if it is missing.
        categories: what the predictions mean.
        overlays: draw each prediction over its picture.
        tiffs: write the ids as `tiff/<name>.tif` too, tiled, which programs for maps and slides read by windows.
        made_by: what the predictions depend on, as plain values; an output that was started with others is refused.
        part: which of several processes this is, a word of its own for each; the first has none.

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
        tiffs: bool = False,
        made_by: Row | None = None,
        part: str = "",
    ) -> None:
        self.folder = prepare_folder(folder, overlays=overlays)
        self.categories, self.overlays, self.tiffs = categories, overlays, tiffs
        self.lines = self.folder / (f"predictions.{part}.jsonl" if part else "predictions.jsonl")
        self.found: Counter[int] = Counter()
        self._head: Json = json.loads(
            json.dumps({"overlays": overlays, **({"tiffs": True} if tiffs else {}), **(made_by or {})})
        )
        self._files: list[Path] = [self.lines]  # of lines, of this process and of others
        self._done: dict[str, int] = {}  # name of a picture to the place of its line
        self._first = not part
        self._lock = locked_folder(self.folder if self._first else self.folder.with_name(f"{self.folder.name}.{part}"))
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> "PredictionFolder":
        try:
            self._lock.__enter__()
        except BlockingIOError:
            raise DataError(f"{self.folder}: another process writes predictions here; choose another output folder") from None
        try:
            if self._first:
                for place in (self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())):
                    remove_stale_temporaries(place)
            if self.lines.is_file():
                self._read_lines(self.lines, mend=True)
            self.read_others()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, file: PictureFile) -> bool:
        return file.name in self._done

    def add(self, file: PictureFile, picture: np.ndarray | Raster, segmentation: PanopticSegmentation) -> None:
        """Write one prediction: its pictures first, then its line.

        Args:
            file: what was predicted.
            picture: (H, W, 3) uint8 RGB, or a large one by windows.
            segmentation: the prediction, of the same size.
        """
        height, width = picture.shape[:2]
        segmentation.save(_place(self.folder / "panoptic" / f"{file.name}.png"))
        if self.tiffs:
            write_id_tiff(_place(self.folder / "tiff" / f"{file.name}.tif"), segmentation.segment_map)
        if self.overlays:
            save_picture(_place(self.folder / "overlays" / f"{file.name}.jpg"), _drawn(picture, segmentation))
        image = {"id": file.image_id, "file_name": file.file_name or file.path.name, "height": height, "width": width}
        if file.source:
            image["path"] = file.source
        annotation = segmentation.to_coco(file.image_id, f"{file.name}.png")
        with self._one_at_a_time:
            if not self._done:
                (self.folder / "predictions.json").unlink(missing_ok=True)  # of other predictions
            with open(self.lines, "ab") as stream:
                if stream.tell() == 0:
                    stream.write(_line({"made_by": self._head}))
                place = stream.tell()
                stream.write(_line({"name": file.name, "image": image, "annotation": annotation}))
            self._note(file.name, place, annotation)

    def recall(self, file: PictureFile) -> PanopticSegmentation:
        """A prediction that is in the folder already, as it was written.

        Raises:
            SegmentMapError: its PNG cannot be read.
        """
        (annotation,) = self._rows([file.name], "annotation")
        segments = [
            Segment(
                row["id"], row["category_id"], bool(row["isthing"]), row["score"], row["area"], tuple(row["bbox"]), row["query"]
            )
            for row in annotation["segments_info"]
        ]
        segment_map = read_id_png(self.folder / "panoptic" / annotation["file_name"])
        return PanopticSegmentation(segment_map, segments, self.categories, image_id=file.image_id)

    def likeness(self) -> tuple[str, CategoryTable, dict[str, Any]]:
        """The arguments, without `part`, of a folder in which another process takes part in the same output."""
        made_by = {key: value for key, value in self._head.items() if key not in ("overlays", "tiffs")}
        options = {"overlays": self.overlays, "tiffs": self.tiffs, "made_by": made_by}
        return str(self.folder), self.categories, options

    def read_others(self) -> None:
        """Take in the lines that other processes have written until now.

        Raises:
            DataError: lines that were made otherwise, or are damaged.
        """
        for path in sorted(self.folder.glob("predictions*.jsonl")):
            if path != self.lines:
                self._read_lines(path, mend=False)

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
        for lines in self._files:
            lines.unlink(missing_ok=True)
        return path

    def write_failures(self, failures: Sequence[Failure]) -> Path | None:
        """Write `failures.json`, a list of path, image_id and reason, or remove an older one where nothing failed."""
        path = self.folder / FAILURES
        if not failures:
            path.unlink(missing_ok=True)
            return None
        write_whole(path, json.dumps([asdict(failure) for failure in failures], indent=1, ensure_ascii=False).encode() + b"\n")
        return path

    def _read_lines(self, path: Path, *, mend: bool) -> None:
        """Read what a process has written; half a line at the end, where one was stopped, is left out, and cut off to mend."""
        if path not in self._files:
            self._files.append(path)
        file = self._files.index(path) << _PLACE_BITS
        with open(path, "r+b" if mend else "rb") as stream:
            start = 0
            for number, line in enumerate(stream):
                if not line.endswith(b"\n"):
                    break
                row = self._read(line, path, number)
                if number == 0:
                    self._check_head(row.get("made_by"), path)
                else:
                    name, annotation = self._entry(row, path, number)
                    self._note(name, file | start, annotation)
                start += len(line)
            if mend:
                stream.truncate(start)

    def _entry(self, row: Row, path: Path, number: int) -> tuple[str, Row]:
        if "name" not in row or "annotation" not in row:
            raise DataError(f"{path}: line {number + 1} is damaged; remove the file to start anew")
        return row["name"], row["annotation"]

    def _read(self, line: bytes, path: Path, number: int) -> Row:
        try:
            row = json.loads(line)
            return row if isinstance(row, dict) else {}
        except ValueError:
            raise DataError(f"{path}: line {number + 1} is damaged; remove the file to start anew") from None

    def _check_head(self, started: object, path: Path) -> None:
        before = started if isinstance(started, dict) else {}
        for key in {**before, **self._head}:
            if before.get(key) != self._head.get(key):
                raise DataError(
                    f"{self.folder}: this output was started with other {key}: {_told(before.get(key))} then, "
                    f"{_told(self._head.get(key))} now; choose another output folder, or remove {path.name} to start anew"
                )

    def _note(self, name: str, place: int, annotation: Row) -> None:
        if name not in self._done:
            self.found.update(segment["category_id"] for segment in annotation["segments_info"])
        self._done[name] = place

    def _rows(self, names: Iterable[str], kind: str) -> Iterator[Row]:
        """What the lines of pictures say, one after the other."""
        with ExitStack() as stack:
            streams: dict[int, BinaryIO] = {}
            for name in names:
                file, place = divmod(self._done[name], 1 << _PLACE_BITS)
                if file not in streams:
                    streams[file] = stack.enter_context(open(self._files[file], "rb"))
                streams[file].seek(place)
                yield json.loads(streams[file].readline())[kind]


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


def _drawn(picture: np.ndarray | Raster, segmentation: PanopticSegmentation) -> np.ndarray:
    """The overlay; of large pictures a smaller one, and without labels where there would be too many."""
    small, segment_map = reduced(picture, segmentation.segment_map)
    shown = replace(segmentation, segment_map=segment_map)
    labels = len(segmentation.segments) <= _MOST_LABELS
    return overlay(small, shown, scale=enlargement(small.shape), labels=labels)


def _line(row: Json) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _told(value: object) -> str:
    return "none" if value is None else str(value)[:120]

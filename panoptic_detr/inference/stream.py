"""Predictions of many pictures as COCO-panoptic files: written as they come, so that no end of the process loses any.

Each picture's PNG (whole or not at all) is followed by a line in `predictions.jsonl`. `finish` makes `predictions.json` of the
lines, and says in it what they depend on. Started or finished, the same settings and the same pictures go on with what is
missing, and others are refused. Processes that share the pictures write lines of their own, `predictions.<part>.jsonl`, which
the first of them joins.
"""

import io
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from panoptic_detr.inference.files import WRITTEN, PictureFile, is_picture_name
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
        made_by: what the predictions depend on, as plain values; an output that was started or finished with others is
            refused. Without them one that is finished always is.
        part: which of several processes this is, a word of its own for each; the first has none.

    Attributes:
        found: segments by category id, of all pictures so far.
        finished: the folder had a `predictions.json` when it was opened, and nothing that was written after it.

    Raises:
        DataError: the folder cannot be made or written to, or its predictions were made otherwise.
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
        self.finished = False
        self._known = made_by is not None
        self._head: Json = json.loads(
            json.dumps({"overlays": overlays, **({"tiffs": True} if tiffs else {}), **(made_by or {})})
        )
        self._files: list[Path] = [self.lines]  # of lines, of this process and of others
        self._whole = self.folder / "predictions.json"
        self._done: dict[str, int] = {}  # name of a picture to the place of its line, or of its annotation in the whole JSON
        self._images: dict[str, int] = {}  # to that of its image in the whole JSON
        self._first = not part
        self._lock = locked_folder(self.folder, part)
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> "PredictionFolder":
        try:
            self._lock.__enter__()
        except BlockingIOError:
            raise DataError(f"{self.folder}: another process writes predictions here; choose another output folder") from None
        try:
            if self._first:
                inside = (path for part in WRITTEN for path in (self.folder / part).rglob("*") if path.is_dir())
                for place in (self.folder, *(self.folder / part for part in WRITTEN), *inside):
                    remove_stale_temporaries(place)
            if self._whole.is_file():
                self._read_whole()
            if self.lines.is_file():
                self._read_lines(self.lines, mend=True)
            self.read_others()
            self.finished = self._files == [self.lines, self._whole] and not self.lines.exists()
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

        Raises:
            DataError: the folder was not opened by `with`, and has finished predictions.
        """
        if not self._done and self._whole not in self._files and self._whole.exists():
            raise self._unknown()
        height, width = picture.shape[:2]
        segmentation.save(_place(self.folder / "panoptic" / f"{file.name}.png"))
        if self.tiffs:
            write_id_tiff(_place(self.folder / "tiff" / f"{file.name}.tif"), segmentation.segment_map)
        if self.overlays:
            save_picture(_place(self.folder / "overlays" / f"{file.name}.jpg"), _drawn(picture, segmentation))
        image = {"id": file.image_id, "file_name": file.file_name or file.path.name, "height": height, "width": width}
        if file.source:
            image["path"] = file.source
        if file.film:
            image["film"] = file.film
        annotation = segmentation.to_coco(file.image_id, f"{file.name}.png")
        with self._one_at_a_time:
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

    def film_of(self, file: PictureFile) -> tuple[int, ...]:
        """The state of a frame's film (`PictureFile.film`) when it was predicted; nothing where that is not known."""
        (image,) = self._rows([file.name], "image")
        return tuple(image.get("film", ()))

    def likeness(self) -> tuple[str, CategoryTable, dict[str, Any]]:
        """The arguments, without `part`, of a folder in which another process takes part in the same output."""
        made_by = {key: value for key, value in self._head.items() if key not in ("overlays", "tiffs")}
        options = {"overlays": self.overlays, "tiffs": self.tiffs, "made_by": made_by if self._known else None}
        return str(self.folder), self.categories, options

    def read_others(self) -> None:
        """Take in the lines that other processes have written until now.

        Raises:
            DataError: lines that were made otherwise, or are damaged.
        """
        for path in sorted(self.folder.glob("predictions*.jsonl")):
            if path != self.lines:
                self._read_lines(path, mend=False)

    def finish(self, order: Iterable[PictureFile] | None = None, *, key: Callable[[str], Any] | None = None) -> Path:
        """Write `predictions.json`, whole or not at all.

        Args:
            order: of the pictures; that of writing by default.
            key: sorts the names instead.

        Returns:
            Its path.
        """
        names = sorted(self._done, key=key) if key is not None else list(self._done)
        if order is not None:
            names = [file.name for file in order if file.name in self._done]
        lists = {f"{kind}s": self._rows(names, kind) for kind in ("image", "annotation")}
        head = {"info": {"description": "panoptic maps predicted by panoptic_detr", "made_by": self._head}}

        def write(stream: BinaryIO) -> None:
            text = io.TextIOWrapper(stream, encoding="utf-8")
            write_json(text, head if self._known else {}, {**lists, "categories": self.categories.to_coco()})
            text.detach()  # flushed, and left open for the rename

        write_whole(self._whole, write)
        for path in self._files:
            if path != self._whole:
                path.unlink(missing_ok=True)
        return self._whole

    def write_failures(self, failures: Sequence[Failure]) -> Path | None:
        """Write `failures.json`, a list of path, image_id and reason, or remove an older one where nothing failed."""
        path = self.folder / FAILURES
        if not failures:
            path.unlink(missing_ok=True)
            return None
        write_whole(path, json.dumps([asdict(failure) for failure in failures], indent=1, ensure_ascii=False).encode() + b"\n")
        return path

    def _read_whole(self) -> None:
        """Read what a finished output has; its entries stay where they are until `finish` copies them."""
        rows = _entries(self._whole)
        key, number, _, line = next(rows, ("", 0, 0, b""))
        made_by = self._read(line, self._whole, number).get("made_by") if key == "info" else None
        if not isinstance(made_by, dict) or not self._known:
            raise self._unknown()
        self._check_head(made_by, self._whole)
        file = len(self._files) << _PLACE_BITS
        self._files.append(self._whole)
        images: deque[int] = deque()
        for key, number, place, line in rows:
            if key == "images":
                images.append(file | place)
            elif key == "annotations":
                annotation = self._read(line, self._whole, number)
                if not images or not annotation.keys() >= {"file_name", "segments_info"}:
                    raise _damaged(self._whole, number)
                name = annotation["file_name"].removesuffix(".png")
                self._images[name] = images.popleft()
                self._note(name, file | place, annotation)

    def _unknown(self) -> DataError:
        return DataError(
            f"{self._whole}: predictions are finished here, and nothing tells that these would have the same settings; "
            "choose another output folder, or remove the file to start anew"
        )

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
            raise _damaged(path, number)
        return row["name"], row["annotation"]

    def _read(self, line: bytes, path: Path, number: int) -> Row:
        try:
            row = json.loads(line.rstrip(b",\n"))
            return row if isinstance(row, dict) else {}
        except ValueError:
            raise _damaged(path, number) from None

    def _check_head(self, started: object, path: Path) -> None:
        if not isinstance(started, dict):
            raise _damaged(path, 0)
        for key in {**started, **self._head}:
            if started.get(key) != self._head.get(key):
                verb = "finished" if path == self._whole else "started"
                then, now = _told(started.get(key), self._head.get(key)), _told(self._head.get(key), started.get(key))
                raise DataError(
                    f"{self.folder}: this output was {verb} with other {key}: {then} then, {now} now; choose another output "
                    f"folder, or remove {path.name} to start anew"
                )

    def _note(self, name: str, place: int, annotation: Row) -> None:
        if not (self.folder / "panoptic" / annotation["file_name"]).is_file():
            return  # its map was removed: it is predicted again
        if name not in self._done:
            self.found.update(segment["category_id"] for segment in annotation["segments_info"])
        self._done[name] = place

    def _rows(self, names: Iterable[str], kind: str) -> Iterator[Row]:
        """What the lines of pictures say, one after the other."""
        with ExitStack() as stack:
            streams: dict[int, BinaryIO] = {}
            for name in names:
                file, place = divmod(self._done[name], 1 << _PLACE_BITS)
                whole = self._files[file] == self._whole
                if whole and kind == "image":
                    place = self._images[name] % (1 << _PLACE_BITS)
                if file not in streams:
                    streams[file] = stack.enter_context(open(self._files[file], "rb"))
                streams[file].seek(place)
                row = json.loads(streams[file].readline().rstrip(b",\n"))
                yield row if whole else row[kind]


def _entries(path: Path) -> Iterator[tuple[str, int, int, bytes]]:
    """Key, number, place and text of the lines of `write_json`: a value of the head or an entry of a list on each."""
    key, start = "", 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if line.startswith(b'"'):
                name, _, rest = line.partition(b": ")
                key = name.decode(errors="replace").strip('"')
                if rest != b"[\n":
                    yield key, number, start, rest
            elif line.startswith(b"{") and line != b"{\n":
                yield key, number, start, line
            start += len(line)


def _damaged(path: Path, number: int) -> DataError:
    return DataError(f"{path}: line {number + 1} is damaged; remove the file to start anew")


def prepare_folder(folder: str | Path, *, overlays: bool = True) -> Path:
    """Make the folders that predictions are written to, so that a mistake shows before any work is done.

    Raises:
        DataError: one cannot be made or written to, or would have the name of a picture.
    """
    if is_picture_name(Path(folder).name) and not Path(folder).is_dir():
        raise DataError(
            f"{folder}: maps, overlays and a JSON are written to a folder, and this is the name of a picture; name one"
        )
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


def _told(value: object, other: object) -> str:
    """A value in words; of a table only what is another one in the other."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item != other.get(key))
    return "none" if value is None else str(value)[:120]

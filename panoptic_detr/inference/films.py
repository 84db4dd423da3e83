"""Films: every frame predicted, things followed from frame to frame, an overlay film and COCO files of the frames.

The frames lie in a `PredictionFolder`, one line each, so a film that was stopped goes on where it was; its overlays are drawn
anew. Several films lie in one such folder, so that they are scored together.
"""

import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from panoptic_detr.errors import DataError
from panoptic_detr.files import by_numbers, check_path, make_folder
from panoptic_detr.inference.files import PictureFile, find_frames, holds_pictures, is_picture_name, unique_name
from panoptic_detr.inference.flow import Outcome, PictureModel, Writers, nothing_read
from panoptic_detr.inference.stream import Failure, PredictionFolder, list_digest
from panoptic_detr.inference.tracking import Tracker
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import map_ahead
from panoptic_detr.visualization.draw import enlargement, overlay

# By the ending of a film that is written: what its pictures are coded with.
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
FILM_ENDINGS = (*CODECS, ".mpg", ".mpeg", ".wmv")
_AHEAD = 8  # frames decoded before they are needed
_MOST_FRAMES = 1_000_000  # of one of several films; keeps their image ids apart


@dataclass(frozen=True)
class Film:
    """A film to predict: a file, or a folder of frames in the order of the numbers in their names.

    Attributes:
        path: of the file or folder.
        frames_per_second: of the film that is written; a file's own.
        count: frames, as far as the file says.
        name: the film in the `file_name` of its frames, `<film>/<frame>.png`; of several films each has its own.
        number: of one among several, from 1: what is written of its frames is named as they are, and their image ids begin
            after so many millions. 0 for a film alone.
    """

    path: Path
    frames_per_second: float
    count: int
    name: str = ""
    number: int = 0

    @classmethod
    def open(cls, path: Path, frames_per_second: float | None = None, *, name: str = "", number: int = 0) -> "Film":
        """Look at a film.

        Args:
            path: a film, or a folder of frames.
            frames_per_second: instead of the file's own; of a folder 25 by default.
            name: that of the file or folder by default.
            number: among several.

        Raises:
            DataError: missing, or not a readable film.
        """
        check_path(path)
        if path.is_dir():
            return cls(path, frames_per_second or 25.0, len(find_frames(path)), name or path.resolve().name, number)
        with _reading(path) as capture:
            own = capture.get(cv2.CAP_PROP_FPS)
            count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            return cls(path, frames_per_second or (own if own > 0 else 25.0), count, name or path.stem, number)

    def frames(self) -> Iterator[tuple[PictureFile, np.ndarray]]:
        """Every frame, numbered from 1, as (H, W, 3) uint8 RGB.

        Raises:
            PictureError: a frame of a folder cannot be read.
            DataError: not one frame of the file can.
        """
        if self.path.is_dir():
            yield from ((self._named(file, number), file.read()) for number, file in enumerate(find_frames(self.path), 1))
            return
        number = 0
        with _reading(self.path) as capture:
            while True:
                there, picture = capture.read()
                if not there:
                    break
                number += 1
                yield self._decoded(number), cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        if not number:
            raise DataError(f"{self.path}: no frame of this film can be decoded; convert it to another format first")

    def identity(self) -> list[object]:
        """What tells this film from others, as plain values."""
        return [str(self.path), *self.state()]

    def state(self) -> tuple[int, ...]:
        """What changes with the film: its file's size and time of change, or its number of frames."""
        state = self.path.stat()
        return (state.st_size, state.st_mtime_ns) if self.path.is_file() else (self.count,)

    def has_changed(self, folder: PredictionFolder) -> bool:
        """Whether frames of one of several films are in the folder that were predicted before it changed."""
        first = self.first() if self.number else None
        return first is not None and first in folder and folder.film_of(first) not in ((), self.state())

    def first(self) -> PictureFile:
        """The first frame."""
        return self._named(find_frames(self.path)[0], 1) if self.path.is_dir() else self._decoded(1)

    def _decoded(self, number: int) -> PictureFile:
        name = f"{number:06d}"
        return self._named(PictureFile(self.path / name, number, name, f"{name}.png"), number)

    def _named(self, file: PictureFile, number: int) -> PictureFile:
        file = replace(file, file_name=f"{self.name}/{file.file_name}")
        if not self.number:
            return file
        if number >= _MOST_FRAMES:
            raise DataError(
                f"{self.path}: one of several films has at most {_MOST_FRAMES - 1} frames, which keeps the ids of their images "
                "apart; predict this one alone, or cut it"
            )
        image_id = self.number * _MOST_FRAMES + number
        return replace(file, name=f"{self.name}/{file.name}", image_id=image_id, film=self.state())


def is_film(path: Path) -> bool:
    """Whether a path has the ending of a film."""
    return path.suffix.lower() in FILM_ENDINGS


def holds_films(path: Path) -> bool:
    """Whether a path is a folder with films and without pictures."""
    check_path(path)
    return path.is_dir() and not holds_pictures(path) and any(map(is_film, path.iterdir()))


def films_left_out(places: Sequence[Path], *, recursive: bool = False) -> list[str]:
    """A line for each folder whose pictures are predicted, about the films that lie in it and are not."""
    lines = []
    for place in places:
        if place.is_dir() and (recursive or holds_pictures(place)):
            films = sorted(path for path in (place.rglob("*") if recursive else place.iterdir()) if is_film(path))
            if films:
                lines.append(f"left out: {len(films)} film(s) in {place}, such as {films[0].name}; name films by themselves")
    return lines


def find_films(places: Sequence[Path]) -> list[Path]:
    """Where films lie.

    Args:
        places: films; folders of frames; patterns of either; folders of films and of folders of frames, in the order of the
            numbers in their names.

    Raises:
        DataError: a folder or pattern without films.
    """
    return [film for place in places for film in _films_at(place)]


def _films_at(place: Path) -> list[Path]:
    check_path(place)
    if glob.has_magic(str(place)) and not os.path.lexists(place):
        found = [Path(text) for text in sorted(glob.glob(str(place), recursive=True), key=by_numbers)]
        if not found:
            raise DataError(f"{place}: no film has such a name; quote patterns, or correct this one")
        return [film for path in found for film in _films_at(path)]
    if place.is_file() and is_picture_name(place.name):
        raise DataError(f"{place}: a picture among films; predict pictures by themselves, or name a folder of frames")
    if not place.is_dir() or holds_pictures(place):
        return [place]
    inside = sorted(place.iterdir(), key=lambda path: by_numbers(path.name))
    films = [path for path in inside if (holds_pictures(path) if path.is_dir() else is_film(path))]
    if not films:
        raise DataError(
            f"{place}: no film in this folder: neither pictures, which would be its frames, nor films "
            f"({', '.join(FILM_ENDINGS)}), nor folders of frames"
        )
    return films


def open_films(places: Sequence[Path], frames_per_second: float | None = None) -> tuple[list[Film], list[Failure]]:
    """Look at films: one alone, if it is named itself, or several, each under a name of its own.

    Args:
        places: as of `find_films`.
        frames_per_second: as of `Film.open`.

    Returns:
        The films, and which of several cannot be opened.

    Raises:
        DataError: as of `find_films`; a film alone, or each of several, cannot be opened.
    """
    paths = find_films(places)
    if len(paths) == 1 and paths == [*places]:
        return [Film.open(paths[0], frames_per_second)], []
    films, failed = list[Film](), list[Failure]()
    taken: set[str] = set()
    for number, path in enumerate(paths, start=1):
        name = unique_name(path.resolve().name if path.is_dir() else path.stem, taken)
        try:
            films.append(Film.open(path, frames_per_second, name=name, number=number))
        except DataError as error:
            failed.append(_failure(path, number, error))
    if not films:
        raise nothing_read("films", failed)
    return films, failed


def films_identity(films: Sequence[Film], failed: Sequence[Failure]) -> object:
    """What tells these films from others: as of a film alone, or of several, by their paths, those that failed among them."""
    if not films[0].number:
        return films[0].identity()
    named = [(film.number, str(film.path)) for film in films] + [(int(failure.image_id), failure.path) for failure in failed]
    return f"{len(named)} films, list {list_digest(PictureFile(Path(path), number, '') for number, path in sorted(named))}"


def _changed(film: Film, folder: PredictionFolder) -> DataError:
    return DataError(
        f"{film.path}: this film has changed since it was predicted; choose another output folder than {folder.folder}"
    )


def _failure(path: Path, number: int, error: DataError) -> Failure:
    return Failure.of(PictureFile(path, number, ""), str(error).removeprefix(f"{path}: "))


def predict_films(
    model: PictureModel,
    films: Sequence[Film],
    folder: PredictionFolder,
    overlays: Callable[[Film], Path | None],
    *,
    track: bool = False,
    requests: Sequence[int] = (),
    watch: Callable[[PanopticSegmentation], object] | None = None,
) -> Outcome:
    """Predict films, one after the other; one of several that cannot be read to its end does not stop the others.

    Args:
        model: what predicts.
        films: as of `open_films`.
        folder: where the frames of all go; those that are there are not predicted again.
        overlays: the overlay film of each, None for none; of several, those that have theirs are passed over.
        track: things keep their ids over the frames of a film.
        requests: once something is in it the run ends after the frames at hand.
        watch: called with the result of each frame, in order.

    Raises:
        DataError: a film alone cannot be read, or its overlay film not be written.
    """
    whole = Outcome()
    for film in films:
        target, tracker = overlays(film), Tracker(folder.categories) if track else None
        if film.has_changed(folder):
            whole.failed.append(_failure(film.path, film.number, _changed(film, folder)))
            continue
        if requests or (film.number and _is_drawn(film, target, folder)):
            continue
        try:
            part = predict_film(model, film, folder, target, tracker=tracker, requests=requests, watch=watch)
        except DataError as error:
            if not film.number:
                raise
            whole.failed.append(_failure(film.path, film.number, error))
            continue
        whole.done += part.done
        whole.seconds += part.seconds
        whole.waiting += part.waiting
    return whole


def _is_drawn(film: Film, target: Path | None, folder: PredictionFolder) -> bool:
    """Whether a film has all frames and its overlays: these appear when they are whole, and those of other runs are removed."""
    if target is None:
        return False
    if film.first() in folder:
        return target.is_file()
    target.unlink(missing_ok=True)
    return False


def predict_film(
    model: PictureModel,
    film: Film,
    folder: PredictionFolder,
    output: Path | None,
    *,
    tracker: Tracker | None = None,
    requests: Sequence[int] = (),
    watch: Callable[[PanopticSegmentation], object] | None = None,
) -> Outcome:
    """Predict the frames of a film in order; one thread decodes ahead, another writes what is done.

    Args:
        model: what predicts.
        film: the film.
        folder: where the frames' results go; those that are there are not predicted again.
        output: the overlay film; None for none. It appears when it is whole.
        tracker: gives things the ids that they had in the frames before.
        requests: once something is in it the run ends after the frames at hand, without an overlay film.
        watch: called with the result of each frame, in order.

    Raises:
        DataError: the film cannot be read, or the overlay film not be written.
    """
    outcome, frames = Outcome(), film.frames()
    started, window = time.perf_counter(), model.batch_size
    coming = map_ahead(lambda _: next(frames, None), iter(int, 1), threads=1, ahead=window + _AHEAD)
    with (
        _film_writer(output, film.frames_per_second, requests) as show,
        Writers(partial(_write, folder, show), 1, most=window + _AHEAD) as writers,
        closing(coming),
    ):
        while not requests:
            before = time.perf_counter()
            chunk = [frame for frame in islice(coming, window) if frame is not None]
            outcome.waiting += time.perf_counter() - before
            if not chunk:
                break
            for file, picture, result, is_new in _results(model, chunk, folder, tracker):
                outcome.waiting += writers.add(file, picture, result, is_new)
                outcome.done += is_new
                if watch is not None:
                    watch(result)
        outcome.waiting += writers.wait()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _results(
    model: PictureModel,
    chunk: Sequence[tuple[PictureFile, np.ndarray]],
    folder: PredictionFolder,
    tracker: Tracker | None,
) -> Iterator[tuple[PictureFile, np.ndarray, PanopticSegmentation, bool]]:
    """The results of some frames, and whether each is new."""
    missing = [picture for file, picture in chunk if file not in folder]
    new = iter(model(missing) if missing else [])
    for file, picture in chunk:
        is_new = file not in folder
        result = next(new) if is_new else folder.recall(file)
        if tracker is not None and is_new:
            result = tracker.update(result)
        elif tracker is not None:
            tracker.recall(result)
        yield file, picture, result, is_new


def _write(
    folder: PredictionFolder,
    show: Callable[[np.ndarray], None] | None,
    file: PictureFile,
    picture: np.ndarray,
    result: PanopticSegmentation,
    is_new: bool,
) -> None:
    if is_new:
        folder.add(file, picture, result)
    if show is not None:
        show(overlay(picture, result, scale=enlargement(picture.shape), shade_by_id=True))


@contextmanager
def _reading(path: Path) -> Iterator[cv2.VideoCapture]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such film; check the folder and the file's ending")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a film that OpenCV can read; convert it to .mp4 first")
        yield capture
    finally:
        capture.release()


@contextmanager
def _film_writer(
    output: Path | None, frames_per_second: float, requests: Sequence[int]
) -> Iterator[Callable[[np.ndarray], None] | None]:
    """What takes the pictures of a film; the film gets its name when the block ends well and no end was asked for.

    Raises:
        DataError: OpenCV cannot write such a film, or a picture has another size than the first.
    """
    if output is None:
        yield None
        return
    make_folder(output.parent)
    codec = CODECS.get(output.suffix.lower())
    if codec is None:
        raise DataError(f"{output}: films are written as {', '.join(CODECS)}; give one of these endings")
    mark = hashlib.sha256(output.name.encode(errors="surrogateescape")).hexdigest()[:12]  # what a kill leaves is written over
    temporary = output.with_name(f".{output.stem[:40]}.{mark}{output.suffix}")
    writer = cv2.VideoWriter()
    first: list[tuple[int, ...]] = []

    def show(picture: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # codecs want even sides
        if not first:
            first.append(picture.shape)
            if not writer.open(str(temporary), cv2.VideoWriter.fourcc(*codec), frames_per_second, (width, height)):
                raise DataError(f"{output}: this OpenCV cannot write such a film; give another ending, .avi say")
        if picture.shape != first[0]:
            raise DataError(
                f"{output}: the frames of a film have one size, but got {picture.shape[:2]} after {first[0][:2]}; give frames "
                "of one size, or predict them without overlays (--no-overlays)"
            )
        writer.write(np.ascontiguousarray(picture[:height, :width, ::-1]))

    try:
        yield show
        writer.release()
        if first and not requests:
            temporary.replace(output)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)

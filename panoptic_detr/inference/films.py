"""Films: every frame predicted, things followed from frame to frame, an overlay film and COCO files of the frames.

The frames lie in a `PredictionFolder`, one line each, so a film that was stopped goes on where it was; its overlays are drawn
anew. Several films lie in one such folder, so that they are scored together.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from panoptic_detr.errors import ConfigError, DataError
from panoptic_detr.files import check_path
from panoptic_detr.images import film_writer, open_film
from panoptic_detr.inference.files import PictureFile, find_films, find_frames, list_digest, unique_name
from panoptic_detr.inference.flow import Outcome, PictureModel, Writers, nothing_read, predict_chunk, read_or_reason
from panoptic_detr.inference.stream import Failure, PredictionFolder
from panoptic_detr.inference.tracking import Tracker
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import map_ahead
from panoptic_detr.visualization.draw import enlargement, overlay

_COUNTED = (".mp4", ".m4v", ".mov", ".avi")  # files that count their frames; of others OpenCV guesses, by a length with sound
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
        with open_film(path) as capture:
            own = capture.get(cv2.CAP_PROP_FPS)
            count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            return cls(path, frames_per_second or (own if own > 0 else 25.0), count, name or path.stem, number)

    def frames(self) -> Iterator[tuple[PictureFile, np.ndarray | str]]:
        """Every frame, in order, as (H, W, 3) uint8 RGB, or the reason why it cannot be read; those of a file count from 1.

        Broken frames inside a file are passed over by its decoder. Where it decodes fewer than the file counts, the first that
        is missing at the end has a reason.

        Raises:
            DataError: not one frame of the file can be read.
        """
        if self.path.is_dir():
            yield from (read_or_reason(PictureFile.read, file) for file in self._listed())
            return
        number = 0
        with open_film(self.path) as capture:
            while True:
                there, picture = capture.read()
                if not there:
                    break
                number += 1
                yield self._decoded(number), cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        if not number:
            raise DataError(f"{self.path}: no frame of this film can be decoded; convert it to another format first")
        if self._counts and number < self.count:
            reason = (
                f"the film ends before this frame, though it counts {self.count}; it is cut or damaged, and not predicted whole"
            )
            yield self._decoded(number + 1), reason

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
        return next(self._listed()) if self.path.is_dir() else self._decoded(1)

    def is_whole(self, folder: PredictionFolder) -> bool:
        """Whether all frames are in a folder, as far as the film tells how many it has."""
        if self.path.is_dir():
            return all(file in folder for file in self._listed())
        return self._decoded(self.count if self._counts and self.count else 1) in folder

    @property
    def _counts(self) -> bool:
        return self.path.suffix.lower() in _COUNTED

    def _listed(self) -> Iterator[PictureFile]:
        return (self._named(file, number) for number, file in enumerate(find_frames(self.path), 1))

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
    """Predict films, one after the other; what cannot be read of one does not stop the others.

    Args:
        model: what predicts.
        films: as of `open_films`.
        folder: where the frames of all go; those that are there are not predicted again.
        overlays: the overlay film of each, None for none; of several, those that have theirs are passed over.
        track: things keep their ids over the frames of a film.
        requests: once something is in it the run ends after the frames at hand.
        watch: called with the result of each frame, in order.

    Raises:
        DataError: nothing of a film alone can be read, or its overlay film not be written.
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
        whole.failed += part.failed
        whole.done += part.done
        whole.seconds += part.seconds
        whole.waiting += part.waiting
    return whole


def check_drawn(drawn: Sequence[Path], films: Sequence[Film]) -> None:
    """Raise `ConfigError` where an overlay film would be written over a film that is read, or is a folder."""
    read = {film.path.resolve() for film in films}
    for path in drawn:
        if path.resolve() in read:
            raise ConfigError(f"--output: {path} would be written over a film that is read; give another name or folder")
        if path.is_dir():
            raise ConfigError(f"--output: {path} is a folder, and would be an overlay film; give another name")


def _is_drawn(film: Film, target: Path | None, folder: PredictionFolder) -> bool:
    """Whether a film has all frames and its overlays: these appear when they are whole, and those of other runs are removed."""
    if target is None:
        return False
    if film.first() not in folder:
        target.unlink(missing_ok=True)
    return target.is_file() and film.is_whole(folder)


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

    Returns:
        How it went; frames that cannot be predicted are `failed`, and left out of the overlay film.

    Raises:
        DataError: nothing of the film can be read, or the overlay film not be written.
    """
    outcome, frames = Outcome(), film.frames()
    started, window = time.perf_counter(), model.batch_size
    coming = map_ahead(lambda _: next(frames, None), iter(int, 1), threads=1, ahead=window + _AHEAD)
    with (
        film_writer(output, film.frames_per_second, requests) as show,
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
                if isinstance(result, str):
                    outcome.failed.append(Failure.of(file, result))
                    continue
                outcome.waiting += writers.add(file, picture, result, is_new)
                outcome.done += is_new
                if watch is not None:
                    watch(result)
        outcome.waiting += writers.wait()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _results(
    model: PictureModel,
    chunk: Sequence[tuple[PictureFile, np.ndarray | str]],
    folder: PredictionFolder,
    tracker: Tracker | None,
) -> Iterator[tuple[PictureFile, np.ndarray, PanopticSegmentation | str, bool]]:
    """The results of some frames, or why there is none, and whether each is new."""
    missing = [row for row in chunk if row[0] not in folder]
    new = {file: result for file, _, result in predict_chunk(model, missing)}
    for file, picture in chunk:
        if isinstance(picture, str):  # a prediction of it that is there stays, but cannot be drawn
            yield file, np.zeros(0), picture, False
            continue
        result = new[file] if file in new else folder.recall(file)
        if tracker is not None and isinstance(result, PanopticSegmentation):
            if file in new:
                result = tracker.update(result)
            else:
                tracker.recall(result)
        yield file, picture, result, file in new


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

"""Quality of films whose frames lie in COCO-panoptic files: VPQ and STQ."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from rich.table import Table

from panoptic_detr.data.coco.defects import show
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.panoptic import Readers, check_scoring, match_images, note_oddities, read_pair
from panoptic_detr.evaluation.panoptic_files import AnnotationSet, ImageId, read_annotations
from panoptic_detr.evaluation.same_images import check_same_films
from panoptic_detr.files import by_numbers
from panoptic_detr.parallel import parallel_map, progress_bar
from panoptic_detr.quality import WINDOWS, FilmQuality, FilmResult


def evaluate_films(
    gt_json: str | Path,
    gt_folder: str | Path,
    pred_json: str | Path,
    pred_folder: str | Path,
    *,
    windows: Sequence[int] = WINDOWS,
    films: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> FilmResult:
    """Score predictions of films; frames are matched as the images of `evaluate_panoptic`, and must be of the same films.

    Films and their frames are what `video_id` and `frame_id` of the truth's `images` say. Where they do not, the frames of a
    film are those whose PNGs of the truth lie in one folder, in the order of the numbers in their names.

    Args:
        gt_json: ground truth whose segments keep their ids over the frames of a film.
        gt_folder: its id PNGs.
        pred_json: predictions whose segments do (`predict FILM --track` writes such).
        pred_folder: their id PNGs.
        windows: numbers of frames for VPQ.
        films: the films to score, by `video_id` or folder; all by default.
        workers: threads, each at a film; by default one per usable core.
        progress: show a progress bar if there is a terminal.

    Raises:
        EvaluationError: as `evaluate_panoptic`; no film of such a name.
    """
    truth, given = read_annotations(gt_json, gt_folder), read_annotations(pred_json, pred_folder)
    check_scoring(truth, workers)
    by_film = _by_film(truth)
    for name in films:
        if name not in by_film:
            raise EvaluationError(f"{gt_json}: no film {name!r}; there are {', '.join(map(repr, sorted(by_film)[:5]))}")
    chosen = {name: by_film[name] for name in films or by_film}
    quality = FilmQuality(truth.categories(), windows=windows)
    prediction = match_images(quality, given, truth, [i for ids in chosen.values() for i in ids])
    _check_some_film(prediction, given, chosen)
    for oddity in check_same_films(prediction, truth, chosen, given):
        quality.note(*oddity)
    if len(by_film) == 1 and not truth.frames:
        kind = (
            "all frames lie in one folder and count as one film; where they are of several, give images video_id and frame_id"
        )
        quality.note(kind, by_film)
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("films", total=len(chosen))
        score = partial(_score_film, quality, prediction, truth, Readers(len(truth.entries)))
        for part in parallel_map(score, list(chosen.items()), workers=workers, threads=True):
            quality.merge(part)
            bar.advance(task)
    return quality.compute()


def _check_some_film(prediction: AnnotationSet, given: AnnotationSet, chosen: Mapping[str, Sequence[ImageId]]) -> None:
    """Raise `EvaluationError` where no frame of the films to score has a prediction: all would count as missed."""
    if any(image_id in prediction.entries for frames in chosen.values() for image_id in frames):
        return
    first = next((given.image_names.get(i, i) for i in given.entries), None)
    raise EvaluationError(
        f"{given.path}: no frame of film {' or '.join(map(repr, sorted(chosen)[:3]))} has a prediction"
        + (f"; those that are there are of other films (first: {show(first)})" if given.entries else "; there are none at all")
        + "; predict these films, or name others to --films"
    )


def _by_film(truth: AnnotationSet) -> dict[str, list[ImageId]]:
    """Ids of the frames of each film, in order."""
    films = defaultdict(list)
    if truth.entries.keys() <= truth.frames.keys():
        for image_id in sorted(truth.entries, key=lambda image_id: truth.frames[image_id][1]):
            films[truth.frames[image_id][0]].append(image_id)
        return films
    places = {i: PurePosixPath(str(entry.get("file_name", "")).replace("\\", "/")) for i, entry in truth.entries.items()}
    for image_id in sorted(places, key=lambda image_id: by_numbers(places[image_id].name)):
        films[str(places[image_id].parent)].append(image_id)
    return films


def _score_film(
    whole: FilmQuality, prediction: AnnotationSet, truth: AnnotationSet, readers: Readers, film: tuple[str, list[ImageId]]
) -> FilmQuality:
    quality = FilmQuality(whole.categories, windows=whole.windows)
    for image_id in film[1]:
        pair = read_pair(prediction, truth, image_id, readers.pair)
        note_oddities(quality, prediction, truth, image_id, pair, quality.update_regions(film[0], *pair))
    return quality


def film_table(result: FilmResult) -> Table:
    """VPQ by windows, and STQ with its parts, in per cent."""
    table = Table(title=f"{result.films} films, {result.frames.images} frames", title_justify="left")
    for column in ("", "All", "Things", "Stuff", "windows"):
        table.add_column(column, justify="right" if column else "left")
    for count, scores in result.windows.items():
        groups = (f"{100 * group.pq:.1f}" if scores.images else "-" for group in (scores.all, scores.things, scores.stuff))
        table.add_row(f"VPQ, {count} frame(s)", *groups, str(scores.images))
    table.add_section()
    for name, value in (("VPQ", result.vpq), ("STQ", result.stq), ("AQ", result.aq), ("SQ", result.sq)):
        table.add_row(name, "-" if value is None else f"{100 * value:.1f}", "", "", "")
    return table


def film_scores(result: FilmResult) -> dict[str, object]:
    """Everything as plain values, fractions."""
    content: dict[str, object] = {"VPQ": result.vpq, "STQ": result.stq, "AQ": result.aq, "SQ": result.sq}
    content |= {"films": result.films, "frames": result.frames.images, "notes": list(result.frames.notes)}
    return content | {"windows": {str(count): scores.as_dict() for count, scores in result.windows.items() if scores.images}}

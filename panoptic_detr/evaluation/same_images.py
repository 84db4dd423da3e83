"""Which prediction is of which image of a ground truth, and whether both mean the same categories.

Every tool numbers images as it likes, so where both JSONs list their images, these are matched by file name. Folders count as
far as both sides name them; endings and the case of letters do not. Ids decide where names are missing or agree with the ids.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import CocoPanoptic, read_json
from panoptic_detr.data.coco.defects import ImageId, show
from panoptic_detr.data.coco.entries import is_id, is_integer
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.panoptic_files import AnnotationSet, folder_of, image_names, read_annotations
from panoptic_detr.files import by_numbers
from panoptic_detr.inference import PictureFile
from panoptic_detr.panoptic import PanopticSegmentation

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2")

Note = tuple[str, list[str]]  # a kind of oddity and a line for each image


def as_images_of(
    prediction: AnnotationSet, truth: AnnotationSet, wanted: Collection[ImageId] | None = None
) -> tuple[AnnotationSet, list[Note]]:
    """The predictions under the image ids of the truth, and what is odd about them; those of other images are left out.

    `wanted` are the images of the truth that should have a prediction: all by default.

    Raises:
        EvaluationError: predictions of other images; names that fit several images; ids that are text here and numbers there.
    """
    by_name = match_names(
        {i: name for i, name in truth.image_names.items() if i in truth.entries},
        {i: name for i, name in prediction.image_names.items() if i in prediction.entries},
        f"{prediction.path}",
    )
    moved = [f"image {i}: {mine} there" for i, mine in by_name.items() if i != mine]
    shared = [i for i in truth.entries if i in prediction.entries]
    if moved:
        taken, named = set(by_name.values()), truth.image_names.keys() & prediction.image_names.keys()
        found = by_name | {i: i for i in shared if i not in by_name and i not in taken and i not in named}
        odd = ("images with other ids than the truth's; matched by their file names", moved)
    else:
        _check_common_ids(prediction, truth)
        found = {i: i for i in shared}
        odd = ("images whose file names differ from the truth's; matched by their ids", _renamed_images(prediction, truth))
    missing = [f"image {i}" for i in (truth.entries if wanted is None else wanted) if i not in found]
    scored = set(found.values())
    unknown = [f"image {i}" for i in prediction.entries if i not in scored]
    return replace(prediction, entries={i: prediction.entries[mine] for i, mine in found.items()}), [
        odd,
        ("images without a prediction, all their segments counted as missed", missing),
        ("predictions for images that the ground truth does not have, not scored", unknown),
    ]


def results_of(data: CocoPanoptic, path: Path, folder: Path | None = None) -> Callable[[int], PanopticSegmentation]:
    """What a results JSON says of the i-th image of a data set.

    Args:
        data: the data set.
        path: the JSON.
        folder: of its PNGs; where they usually lie by default (`folder_of`).

    Raises:
        EvaluationError: as `as_images_of`; results of other categories. In a call: no result for the image, or a damaged one.
    """
    truth = AnnotationSet(data.annotations, data.panoptic, {i: {} for i in data.names}, image_names=data.names)
    results, _ = as_images_of(read_annotations(path, folder or folder_of(path)), truth)
    check_same_names(results, data.categories)
    return lambda i: results.segmentation(data.image_ids[i], data.categories)


def match_names(truth: Mapping[ImageId, str], other: Mapping[ImageId, str], where: str) -> dict[ImageId, ImageId]:
    """Find the image of the same file name for each image.

    Names that are the same to the last letter find each other first, then those that differ in their ending or the case of
    letters only, then those of which one names more of the same folders; of several, those with the same id.

    Args:
        truth: file names by id, with folders or without.
        other: the names to look among.
        where: what to call the second in messages.

    Returns:
        Ids of the first to ids of the second, where there is one.

    Raises:
        EvaluationError: several images fit equally well.
    """
    found: dict[ImageId, ImageId] = {}
    depth = min((len(_parts(name)) for name in (*truth.values(), *other.values())), default=1)
    levels: list[Callable[[str], object]] = [lambda name: name, _parts, lambda name: _parts(name)[-depth:]]
    for key in levels:
        groups: dict[object, tuple[list[ImageId], list[ImageId]]] = defaultdict(lambda: ([], []))
        taken = set(found.values())
        for i in truth.keys() - found.keys():
            groups[key(truth[i])][0].append(i)
        for j in other.keys() - taken:
            groups[key(other[j])][1].append(j)
        for mine, theirs in groups.values():
            pairs = [(i, j) for i in mine for j in theirs if _same_folders(truth[i], other[j])]
            found |= _pair_up(pairs, truth, other, where)
    return {i: found[i] for i in truth if i in found}


def like_truth(files: Sequence[PictureFile], path: Path) -> tuple[list[PictureFile], list[str]]:
    """The pictures that a ground truth lists, under its ids and names, and a line for what is missing on either side.

    Raises:
        EvaluationError: a picture that fits several images, or none of the pictures is listed.
    """
    names = image_names(read_json(path).get("images"))
    pictures = {f"#{number}": file for number, file in enumerate(files, start=1)}  # keys that are no id of the truth
    file_names: dict[ImageId, str] = {key: file.file_name for key, file in pictures.items()}
    place_of = match_names(names, file_names, "the pictures")
    if not place_of:
        raise EvaluationError(f"{path}: none of its {len(names)} images has the name of one of the {len(files)} pictures")
    notes = []
    if len(place_of) < len(files):
        notes.append(f"left out: {len(files) - len(place_of)} pictures that {path} does not list")
    if len(place_of) < len(names):
        notes.append(f"no picture is there for {len(names) - len(place_of)} of the {len(names)} images of {path}")
    return [replace(pictures[str(key)], image_id=i, file_name=names[i]) for i, key in place_of.items()], notes


def check_same_films(
    prediction: AnnotationSet, truth: AnnotationSet, films: Mapping[str, Sequence[ImageId]], given: AnnotationSet
) -> list[Note]:
    """Find frames of other films, whose image ids are the truth's by chance, so that their folders differ; or of other places.

    Args:
        prediction: as `as_images_of` returns it.
        truth: the ground truth.
        films: the image ids of each film, in order.
        given: the predictions as they were before.

    Returns:
        Oddities: frames of a film whose folders differ, and those whose names do not say of which film they are.

    Raises:
        EvaluationError: both sides name folders for the frames of a film, and none agrees (a name that stands within the other,
            as `0000` in `clip_0000`, will do); or its frames begin with other numbers than the truth's.
    """
    _check_first_frames(prediction, truth, films, given)
    other, unsaid = list[str](), list[str]()
    frames_named = Counter(_parts(name)[-1] for i, name in truth.image_names.items() if i in truth.entries)
    for film, frames in films.items():
        pairs = [(i, *_names(prediction, truth, i)) for i in frames if i in prediction.entries]
        listed = [row for row in pairs if row[1] and row[2]]
        differing = [row for row in listed if _contradict(*row[1:])]
        if differing and len(differing) == len(listed) and not all(_same_frame(*row[1:]) for row in differing):
            i, mine, theirs = differing[0]
            raise EvaluationError(
                f"{prediction.path}: these are predictions of another film: image {i} is {show(mine)} there but {show(theirs)} "
                f"in {truth.path}, and no frame of film {film!r} has the same folder on both sides; predict this film from a "
                "file or folder of its name, or give both the same file names"
            )
        other += [f"image {i}: {show(mine)}, truth {show(theirs)}" for i, mine, theirs in differing]
        unsaid += [
            f"image {i}: {show(mine)}" for i, mine, _ in listed if len(_parts(mine)) == 1 and frames_named[_parts(mine)[0]] > 1
        ]
    return [
        ("frames in another folder than the truth's; matched by their ids", other),
        ("frames whose file names fit several films; matched by their ids", unsaid),
    ]


def _names(prediction: AnnotationSet, truth: AnnotationSet, image_id: ImageId) -> tuple[str, str]:
    """The file names of an image on both sides; nothing where one does not list it."""
    own = prediction.entries[image_id].get("image_id")
    return prediction.image_names.get(own, "") if is_id(own) else "", truth.image_names.get(image_id, "")


def _check_first_frames(
    prediction: AnnotationSet, truth: AnnotationSet, films: Mapping[str, Sequence[ImageId]], given: AnnotationSet
) -> None:
    """Raise `EvaluationError` where one end of a film has no prediction, and frames beyond its other end have."""
    taken = {entry.get("image_id") for entry in prediction.entries.values()}
    names = [given.image_names[i] for i in given.entries if i not in taken and i in given.image_names]
    for film, frames in films.items():
        ends = [truth.image_names.get(frames[end], "") for end in (0, -1)]
        missing = [frames[end] not in prediction.entries for end in (0, -1)]
        if not all(ends) or not any(missing):
            continue
        first, last = map(_order, ends)
        near = [name for name in names if not _contradict(name, ends[0]) and (len(_parts(name)) > 1 or len(films) == 1)]
        late = [name for name in near if missing[0] and _order(name) > last]
        early = [name for name in near if missing[1] and _order(name) < first]
        if late or early:
            raise EvaluationError(
                f"{given.path}: the frames of film {film!r} are numbered otherwise there: the truth's are {show(ends[0])} to "
                f"{show(ends[1])}, and the {'first' if late else 'last'} has no prediction, but {show((late or early)[0])} "
                "has one, so each would be scored against another frame; predict a folder of frames named as the truth's"
            )


def _order(name: str) -> tuple[object, ...]:
    return by_numbers(_parts(name)[-1])


def _same_frame(mine: str, theirs: str) -> bool:
    """Whether two names with other folders are of the same frame, and one folder's name stands within the other's."""
    a, b = _parts(mine), _parts(theirs)
    return a[-1] == b[-1] and _alike(a[-2], b[-2])


def _contradict(mine: str, theirs: str) -> bool:
    """Whether both names have folders, and other ones."""
    a, b = _parts(mine)[:-1], _parts(theirs)[:-1]
    length = min(len(a), len(b))
    return length > 0 and a[-length:] != b[-length:]


def _pair_up(
    pairs: list[tuple[ImageId, ImageId]], truth: Mapping[ImageId, str], other: Mapping[ImageId, str], where: str
) -> dict[ImageId, ImageId]:
    """Pairs of the same id, and then those that nothing else fits."""
    found = {i: j for i, j in pairs if i == j}
    rest = [(i, j) for i, j in pairs if i not in found and j not in found]
    for side, names in enumerate((truth, other)):
        for one, count in Counter(pair[side] for pair in rest).items():
            if count > 1:
                fitting = [pair for pair in rest if pair[side] == one][:2]
                both = " and ".join(
                    f"{show((other, truth)[side][pair[1 - side]])} (image {pair[1 - side]})" for pair in fitting
                )
                raise EvaluationError(
                    f"{where}: {both} both fit {show(names[one])} (image {one}); give file names with their folders, or the "
                    "same image ids, on both sides"
                )
    return found | dict(rest)


def _same_folders(mine: str, theirs: str) -> bool:
    a, b = _parts(mine), _parts(theirs)
    length = min(len(a), len(b))
    return a[-length:] == b[-length:]


def _parts(name: str) -> tuple[str, ...]:
    """Folders and name, without the ending of a picture, in small letters."""
    path = PurePosixPath(name.replace("\\", "/").casefold())
    return (path.with_suffix("") if path.suffix in ENDINGS else path).parts or ("",)


def _check_common_ids(prediction: AnnotationSet, truth: AnnotationSet) -> None:
    if not truth.entries or not prediction.entries or truth.entries.keys() & prediction.entries.keys():
        return
    mine, theirs = next(iter(prediction.entries)), next(iter(truth.entries))
    if type(mine) is not type(theirs):
        kinds = {int: "numbers", str: "text"}
        raise EvaluationError(
            f"{prediction.path}: its image ids are {kinds[type(mine)]} ({mine!r}), those of {truth.path} are "
            f"{kinds[type(theirs)]} ({theirs!r}), so no image is in both; write them as the ground truth does"
        )
    raise EvaluationError(
        f"{prediction.path}: none of its {len(prediction.entries)} images (first: {show(mine)}) is in {truth.path} (first: "
        f"{show(theirs)}); give the ground truth of the predicted images, or list 'images' with their file names in both"
    )


def _renamed_images(prediction: AnnotationSet, truth: AnnotationSet) -> list[str]:
    """Find predictions of another split: those whose image ids are the truth's by chance, so that the names differ.

    The names of the images are compared where both JSONs list `images`. Elsewhere there are only those of the PNGs, which
    results may choose freely: they are noted, never refused. Folder and ending do not count, nor what stands around a name.

    Returns:
        A line for each image whose names differ.

    Raises:
        EvaluationError: both list the images that they share, and none has the same name on both sides.
    """
    shared = [image_id for image_id in truth.entries if image_id in prediction.entries]
    listed = [i for i in shared if i in truth.image_names and i in prediction.image_names]
    if listed:
        names = {i: (prediction.image_names[i], truth.image_names[i]) for i in listed}
        differing = [i for i, (mine, theirs) in names.items() if not _alike(_stem(mine), _stem(theirs))]
    else:
        pairs = {i: (prediction.entries[i].get("file_name"), truth.entries[i].get("file_name")) for i in shared}
        names = {i: (a, b) for i, (a, b) in pairs.items() if isinstance(a, str) and isinstance(b, str)}
        differing = [
            i for i, (mine, theirs) in names.items() if not (_alike(_stem(mine), _stem(theirs)) or _tells(_stem(mine), i))
        ]
    if listed and len(differing) == len(names):
        mine, theirs = names[differing[0]]
        raise EvaluationError(
            f"{prediction.path}: these are predictions of other images: image {differing[0]} is {show(mine)} there but "
            f"{show(theirs)} in {truth.path}, and no other image has the same name on both sides; predict the images of this "
            "ground truth (its split), or give the ground truth of the predicted ones"
        )
    return [f"image {i}: {show(names[i][0])}, truth {show(names[i][1])}" for i in differing]


def check_same_names(prediction: AnnotationSet, categories: CategoryTable) -> list[str]:
    """Find predictions of another class table, where the predictions' JSON lists its categories.

    Returns:
        A line for each category id that has another name there. Names differ between tools, so some are only noted.

    Raises:
        EvaluationError: they share several ids, and none has the same name on both sides.
    """
    rows = prediction.category_list if isinstance(prediction.category_list, list) else []
    names = {
        row["id"]: row["name"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), int) and "name" in row
    }
    shared = [category for category in categories.categories if category.id in names]
    differing = [category for category in shared if names[category.id] != category.name]
    if len(differing) == len(shared) > 1:
        first = differing[0]
        raise EvaluationError(
            f"{prediction.path}: these are predictions of other categories: {first.id} is {show(names[first.id])} there but "
            f"{show(first.name)} in the truth, and no other id has the same name on both sides; give both the same categories"
        )
    return [f"category {c.id}: {show(names[c.id])}, truth {show(c.name)}" for c in differing]


def other_kinds(prediction: AnnotationSet, categories: CategoryTable) -> list[str]:
    """A line for each category that is things in one JSON and stuff in the other, where the predictions' lists it."""
    rows = prediction.category_list if isinstance(prediction.category_list, list) else []
    known = [row for row in rows if isinstance(row, dict) and is_integer(row.get("id")) and row.get("isthing") in (0, 1)]
    kinds = {row["id"]: row["isthing"] for row in known}
    return [f"category {c.id}: {c.kind} in the truth" for c in categories.categories if kinds.get(c.id, c.isthing) != c.isthing]


def _stem(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return (last.rpartition(".")[0] or last).casefold()


def _alike(mine: str, theirs: str) -> bool:
    """Whether one name stands within the other as a whole number or word."""
    return (mine == theirs and bool(mine)) or any(
        re.search(rf"(?<!\d){re.escape(part)}(?!\d)", whole) for part, whole in ((mine, theirs), (theirs, mine)) if part
    )


def _tells(name: str, image_id: ImageId) -> bool:
    """Whether the image's id stands in a name, with or without zeros before it."""
    return re.search(rf"(?<!\d)0*{re.escape(str(image_id).casefold())}(?!\d)", name) is not None

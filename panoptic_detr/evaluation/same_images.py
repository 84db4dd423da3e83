"""Whether predictions are of the images and the categories of a ground truth: ids may agree by chance, names then do not."""

import re
from pathlib import PurePosixPath

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.panoptic_files import AnnotationSet, ImageId, shown


def check_same_images(prediction: AnnotationSet, truth: AnnotationSet) -> list[str]:
    """Find predictions of another split: those whose image ids are the truth's by chance, so that the file names differ.

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
            f"{prediction.path}: these are predictions of other images: image {differing[0]} is {shown(mine)} there but "
            f"{shown(theirs)} in {truth.path}, and no other image has the same name on both sides; predict the images of this "
            "ground truth (its split), or give the ground truth of the predicted ones"
        )
    return [f"image {i}: {shown(names[i][0])}, truth {shown(names[i][1])}" for i in differing]


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
            f"{prediction.path}: these are predictions of other categories: {first.id} is {shown(names[first.id])} there but "
            f"{shown(first.name)} in the truth, and no other id has the same name on both sides; give both the same categories"
        )
    return [f"category {c.id}: {shown(names[c.id])}, truth {shown(c.name)}" for c in differing]


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.casefold()


def _alike(mine: str, theirs: str) -> bool:
    """Whether one name stands within the other as a whole number or word."""
    return any(re.search(rf"(?<!\d){re.escape(part)}(?!\d)", whole) for part, whole in ((mine, theirs), (theirs, mine)) if part)


def _tells(name: str, image_id: ImageId) -> bool:
    """Whether the image's id stands in a name, with or without zeros before it."""
    return re.search(rf"(?<!\d)0*{re.escape(str(image_id).casefold())}(?!\d)", name) is not None


def check_some_shared(prediction: AnnotationSet, truth: AnnotationSet) -> None:
    """Refuse what has nothing to score.

    Raises:
        EvaluationError: no ground truth, or no image id in common; numbers against texts are told.
    """
    if not truth.entries:
        raise EvaluationError(f"{truth.path}: there is no annotation in it, so there is nothing to score; give another split")
    if not prediction.entries or prediction.entries.keys() & truth.entries.keys():
        return
    mine, theirs = next(iter(prediction.entries)), next(iter(truth.entries))
    alike = {str(i) for i in prediction.entries} & {str(i) for i in truth.entries}
    why = "text against number: write them alike" if alike else "predict the images of this ground truth"
    raise EvaluationError(
        f"{prediction.path}: no image id is also one of {truth.path}: {mine!r} there, {theirs!r} in the truth; {why}"
    )

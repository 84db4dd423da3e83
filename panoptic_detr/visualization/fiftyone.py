"""A data set with its predictions as a folder that FiftyOne opens: every segment with its mask, score and whether it is right.

The folder is FiftyOne's own format, FiftyOneDataset: `metadata.json` says which fields there are, `samples.json` has an image
each. It is written without that library, so that it can be made on one machine and looked at on another.
"""

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TypeAlias

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import InputError
from panoptic_detr.files import staged_file, staged_folder, write_json
from panoptic_detr.images import place_image
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.visualization.draw import Palette, category_colors
from panoptic_detr.visualization.errors import Comparison, Entry, compare

Json: TypeAlias = dict[str, object]
VERSION = "1.0.0"  # of the format; every later FiftyOne brings it up to date while it reads
TRUTH, PREDICTION = "ground_truth", "predictions"
_LABELS = "fiftyone.core.labels"
_FIELDS = "fiftyone.core.fields"
# Of each segment beside its label, box and mask: name and kind.
_FACTS = {
    "isthing": "BooleanField",
    "iscrowd": "BooleanField",
    "status": "StringField",
    "iou": "FloatField",
    "query": "IntField",
}


def write_fiftyone(
    folder: str | Path,
    entries: Iterable[tuple[Entry, Path, int | str]],
    categories: CategoryTable,
    *,
    tag: str = "",
    copy: bool = False,
    palette: Palette = "distinct",
) -> Path:
    """Write a data set for FiftyOne.

    Each sample has `image_id`, `ground_truth` and `predictions` (Detections of things and stuff, each with `isthing`; masks
    within their boxes), and with both also `pq`, and of each segment `status` and `iou` as the report has them.

    Args:
        folder: made if it is missing.
        entries: each image with its file and its id.
        categories: of the data set; their colours are those of our pictures.
        tag: of every sample, such as the split.
        copy: put the images into the folder, for another machine; otherwise it points to where they lie.
        palette: see `overlay`.

    Returns:
        The folder.

    Raises:
        DataError: the folder has a data set already, or cannot be written; two images to copy have one name.
    """
    copied: dict[str, Path] = {}  # several entries may be of one file
    with staged_folder(folder, ("data", "samples.json", "metadata.json")) as place:

        def samples() -> Iterator[Json]:
            for entry, path, image_id in entries:
                if copy and copied.get(entry.name) != path:
                    copied[entry.name] = path
                    place_image(path, place / "data", entry.name, copy=True)
                yield _sample(entry, f"data/{entry.name}" if copy else str(path.resolve()), image_id, tag)

        with staged_file(place / "samples.json") as file:
            write_json(file, {}, {"samples": samples()})
        with staged_file(place / "metadata.json") as file:
            json.dump(_metadata(Path(folder).name, categories, palette), file, indent=1)
    return Path(folder)


def open_fiftyone(folder: str | Path, name: str) -> None:
    """Show a folder of `write_fiftyone` in FiftyOne's app until it is closed.

    Args:
        folder: the data set.
        name: under which FiftyOne lists it, with a number behind it where it lists another of that name already.

    Raises:
        InputError: FiftyOne is not installed, or its app does not start.
    """
    try:
        import fiftyone
    except ImportError:
        raise InputError("FiftyOne is not installed: pip install 'panoptic-detr[fiftyone]'") from None
    try:
        names = (f"{name}-{number}" if number > 1 else name for number in count(1))
        free = next(name for name in names if not fiftyone.dataset_exists(name))  # others may be somebody's work
        data = fiftyone.Dataset.from_dir(dataset_dir=str(folder), dataset_type=fiftyone.types.FiftyOneDataset, name=free)
        session = fiftyone.launch_app(data)
    except Exception as error:  # of its database, its server, a port: each has types of its own
        raise InputError(f"FiftyOne's app does not start: {type(error).__name__}: {error}") from error
    session.wait()


def _sample(entry: Entry, path: str, image_id: int | str, tag: str) -> Json:
    """One image with its labels."""
    height, width = entry.image.shape[:2]
    own = _object_id(f"{image_id!r} {path}")  # two images may be of one file
    sample: Json = {
        "_id": own,
        "filepath": path,
        "tags": [tag] if tag else [],
        "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
        "_media_type": "image",
        "_rand": int(own["$oid"][:8], 16) / 2**32,
        "image_id": str(image_id),
    }
    compared = None
    if entry.truth is not None and entry.prediction is not None:
        compared = compare(entry.prediction, entry.truth)
        sample["pq"] = compared.matching.quality
    for field, segmentation in ((TRUTH, entry.truth), (PREDICTION, entry.prediction)):
        if segmentation is not None:
            labels = _labels(segmentation, f"{own['$oid']} {field}", compared, predicted=field == PREDICTION)
            sample[field] = {"_cls": "Detections", "detections": labels}
    return sample


def _labels(segmentation: PanopticSegmentation, where: str, compared: Comparison | None, *, predicted: bool) -> list[Json]:
    """The segments of a map."""
    labels, known = [], segmentation.categories.by_id
    for index, segment in enumerate(segmentation.segments):
        category = known.get(segment.category_id)
        label: Json = {
            "_id": _object_id(f"{where} {segment.id}"),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": f"class {segment.category_id}" if category is None else category.name,
            **_region(segmentation.segment_map, segment),
            "index": segment.id,
            "isthing": segment.isthing,
        }
        if predicted:
            label |= {"confidence": segment.score, "query": segment.query}
        else:
            label["iscrowd"] = segment.iscrowd
        if compared is not None:
            facts = compared.of_prediction(index) if predicted else compared.of_truth(index, segment)
            label |= dict(zip(("status", "iou"), facts, strict=True))
        labels.append(label)
    return labels


def _region(segment_map: np.ndarray, segment: Segment) -> Json:
    """Box (left, top, width, height as fractions of the image), and the mask within it as a compressed .npy."""
    left, top, width, height = segment.box
    mask = segment_map[top : top + height, left : left + width] == segment.id
    with io.BytesIO() as stream:
        np.save(stream, mask, allow_pickle=False)
        data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    rows, columns = segment_map.shape
    box = [left / columns, top / rows, width / columns, height / rows]
    return {"bounding_box": box, "mask": {"$binary": {"base64": data, "subType": "00"}}}


def _object_id(text: str) -> dict[str, str]:
    """An id as MongoDB has them, the same for the same text."""
    return {"$oid": hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]}


def _metadata(name: str, categories: CategoryTable, palette: Palette) -> Json:
    """The data set itself: its fields, and the colours of its classes."""
    colors = category_colors(categories, palette)
    values = [
        {"value": category.name, "color": "#{:02x}{:02x}{:02x}".format(*colors[category.id])}
        for category in categories.categories
    ]
    fields = [{"path": path, "colorByAttribute": "label", "valueColors": values} for path in (TRUTH, PREDICTION)]
    names = [category.name for category in categories.categories]
    return {
        "_id": _object_id(name),
        "name": name,
        "version": VERSION,
        "persistent": False,
        "media_type": "image",
        "tags": [],
        "info": {},
        "app_config": {"color_scheme": {"_id": _object_id(f"{name} colours"), "color_by": "value", "fields": fields}},
        "classes": {field: names for field in (TRUTH, PREDICTION)},
        "default_classes": [],
        "mask_targets": {},
        "default_mask_targets": {},
        "skeletons": {},
        "sample_fields": _sample_fields(),
    }


def _sample_fields() -> list[Json]:
    """The fields of a sample: FiftyOne's own, and ours."""
    size = [_field(part, "IntField") for part in ("width", "height")]
    return [
        _field("id", "ObjectIdField", stored="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", of="StringField"),
        _field("metadata", "EmbeddedDocumentField", kind="fiftyone.core.metadata.ImageMetadata", fields=size),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField"),
        _field("last_modified_at", "DateTimeField"),
        _field("image_id", "StringField"),
        _field("pq", "FloatField"),
        _detections(TRUTH),
        _detections(PREDICTION),
    ]


def _detections(name: str) -> Json:
    """A field of segments."""
    rows = [
        _field("id", "ObjectIdField", stored="_id"),
        _field("tags", "ListField", of="StringField"),
        _field("attributes", "DictField", kind=f"{_LABELS}.Attribute", of="EmbeddedDocumentField"),
        _field("label", "StringField"),
        _field("bounding_box", "ListField", of="FloatField"),
        _field("mask", "ArrayField"),
        _field("mask_path", "StringField"),
        _field("confidence", "FloatField"),
        _field("index", "IntField"),
        *(_field(fact, kind) for fact, kind in _FACTS.items()),
    ]
    inside = _field("detections", "ListField", kind=f"{_LABELS}.Detection", of="EmbeddedDocumentField", fields=rows)
    return _field(name, "EmbeddedDocumentField", kind=f"{_LABELS}.Detections", fields=[inside])


def _field(
    name: str, field: str, *, kind: str | None = None, of: str | None = None, fields: Iterable[Json] = (), stored: str = ""
) -> Json:
    """One field: its name, its kind, what documents or lists in it are of, and the name that it is stored under."""
    return {
        "name": name,
        "ftype": f"{_FIELDS}.{field}",
        "embedded_doc_type": kind,
        "subfield": None if of is None else f"{_FIELDS}.{of}",
        "fields": list(fields),
        "db_field": stored or name,
        "description": None,
        "info": None,
    }

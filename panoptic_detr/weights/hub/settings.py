"""What the labels of a folder of the hub mean, and how it wants pictures prepared."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from panoptic_detr.categories import Category, CategoryTable, default_color
from panoptic_detr.coco_classes import DETECTION_LABELS, PANOPTIC_LABELS, coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.types import fits_type
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.errors import CheckpointError, ConfigError

_PLACEHOLDER = re.compile(r"(?i)|n/?a|label_\d+|none|null|no.?object|background")


def categories_of_labels(id2label: Mapping[str, str] | None, num_labels: int, panoptic: bool) -> CategoryTable:
    """The class table of a folder of transformers.

    Published files have a name for every COCO id, and "N/A" or "LABEL_12" for ids that are no class: where no name says
    otherwise, 91 and 250 labels are COCO's own table, which also knows what is a thing. Elsewhere a label is a category of that
    id; of a panoptic model those with the name of a kind of COCO's stuff are stuff, all others things.

    Raises:
        CheckpointError: labels that are no numbers, or beyond the last one.
    """
    names = _names(id2label or {}, num_labels)
    if num_labels in (DETECTION_LABELS, PANOPTIC_LABELS):
        coco = coco_categories(num_labels)
        known = {category.id: _plain(category.name) for category in coco_categories().categories}
        if all(_plain(name) == known.get(label) for label, name in names.items()):
            return coco
    stuff = {_plain(category.name) for category in coco_categories().stuff} if panoptic else set()
    names = names or {label: f"LABEL_{label}" for label in range(num_labels)}  # all are placeholders: they are what there is
    rows = [Category(label, name, _plain(name) not in stuff, default_color(label)) for label, name in sorted(names.items())]
    return CategoryTable(tuple(rows), num_labels, "id")


def labels_of_categories(categories: CategoryTable | None, num_labels: int) -> dict[str, str]:
    """`id2label` as the published files have it: a name for every label, "N/A" where there is no category."""
    by_label = {} if categories is None else categories.by_label
    missing = "N/A" if by_label else "LABEL_{}"
    return {str(i): by_label[i].name if i in by_label else missing.format(i) for i in range(num_labels)}


def settings_of_processor(processor: Mapping[str, object]) -> dict[str, object]:
    """The settings of `InferenceSettings` that a `preprocessor_config.json` of whatever age gives.

    Raises:
        CheckpointError: a size of another form, or a preparation that we do not have.
    """
    found: dict[str, object] = _size(processor) if processor.get("do_resize", True) else {"short_side": None}
    mean, std = (
        _statistics(processor, key, usual) for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    if not processor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or factor <= 0:
        raise CheckpointError(f"preprocessor_config.json: rescale_factor must be above 0, but is {factor!r}")
    if abs(255 * factor - 1) > 1e-6:  # pixels of 0..255 times the factor; ours are of 0..1
        mean, std = (tuple(value / (255 * factor) for value in values) for values in (mean, std))
    if max(abs(a - b) for a, b in zip((*mean, *std), (*IMAGENET_MEAN, *IMAGENET_STD), strict=True)) > 1e-6:
        found |= {"image_mean": list(mean), "image_std": list(std)}
    try:
        InferenceSettings.from_dict(found)
    except ConfigError as error:
        raise CheckpointError(f"preprocessor_config.json: {error}") from None
    return found


def processor_of_settings(settings: InferenceSettings, kind: str, *, panoptic: bool) -> dict[str, object]:
    """The `preprocessor_config.json` that prepares pictures as the settings say."""
    name = "DetrImageProcessor" if kind == "detr" else "DeformableDetrImageProcessor"
    size = None if settings.short_side is None else {"shortest_edge": settings.short_side, "longest_edge": settings.long_side}
    return {
        "image_processor_type": name,
        "format": "coco_panoptic" if panoptic else "coco_detection",
        "do_resize": size is not None,
        "size": size or {"shortest_edge": 800, "longest_edge": settings.long_side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.image_mean or IMAGENET_MEAN),
        "image_std": list(settings.image_std or IMAGENET_STD),
        "do_pad": True,
    }


def _names(id2label: Mapping[str, str], num_labels: int) -> dict[int, str]:
    """Label to name, without placeholders."""
    names = {}
    for label, name in id2label.items():
        if not str(label).isdecimal() or int(label) >= num_labels or not isinstance(name, str):
            raise CheckpointError(
                f"config.json: id2label has {name!r} for {label!r}; labels are 0 to {num_labels - 1}, with texts"
            )
        if not _PLACEHOLDER.fullmatch(name.strip()):
            names[int(label)] = name
    return names


def _statistics(processor: Mapping[str, object], key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    """A number for each of the three colours."""
    values: Any = processor.get(key) or usual
    if not fits_type(values, Sequence[float]) or len(values) != 3:
        raise CheckpointError(f"preprocessor_config.json: {key} must be three numbers, but is {values!r}")
    return tuple(values)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _size(processor: Mapping[str, object]) -> dict[str, object]:
    """Short and long side: `size: 800, max_size: 1333`, or a dict of edges."""
    size, longest = processor.get("size", 800), processor.get("max_size", 1333)
    if isinstance(size, Sequence | Mapping) and not isinstance(size, str) and "shortest_edge" not in size:
        raise CheckpointError(f"preprocessor_config.json: size {size!r} has no shortest_edge; we resize by the short side")
    if isinstance(size, Mapping):
        size, longest = size["shortest_edge"], size.get("longest_edge", longest)
    if not isinstance(size, int) or not isinstance(longest or 1, int):
        raise CheckpointError(f"preprocessor_config.json: size must be whole numbers of pixels, but is {size!r}, {longest!r}")
    return {"short_side": size, "long_side": longest or 2**15}

"""Models small enough to export in a second, pictures for them, and what is the same result."""

import cv2
import numpy as np
import torch
from torch import nn

import panoptic_detr as pd
from panoptic_detr.data.transforms import target_size

TINY = {"num_labels": 5, "backbone": "small", "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32}
OF_FAMILY = {"mask_detr": {"stuff_labels": [3, 4], "num_queries": 18}}
FAMILIES = [
    "detr_r50_panoptic",
    "deformable_detr_r50_panoptic",
    "h_deformable_detr_r50_panoptic",
    "mask_detr_r50_panoptic",
]
TABLE = pd.CategoryTable.from_coco([{"id": 10 * i + 10, "name": f"class {i}", "isthing": int(i < 3)} for i in range(5)])
SETTINGS = pd.InferenceSettings(threshold=0.2, min_area=40, short_side=None)


def lively(name: str, **overrides: object) -> nn.Module:
    """A tiny model whose random weights are large enough that many queries are kept, with masks that compete."""
    family = next((values for start, values in OF_FAMILY.items() if name.startswith(start)), {"num_queries": 20})
    settings = {**TINY, **family, **overrides}
    if name.endswith("_panoptic") and "mask_detr" not in name:
        settings["mask_scale_maps"] = True  # otherwise the masks of untrained queries are all the same
    torch.manual_seed(0)
    model = pd.build_model(name, **settings).eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        if key.endswith(("query_embed.weight", "q_linear.weight", "k_linear.weight", "stuff_embed.weight")):
            parameter.data *= 4
    for key, bias in model.named_parameters():
        if "class_embed" in key and bias.dim() == 1:
            nn.init.zeros_(bias)
            bias.data[TINY["num_labels"] :] = -6  # no object
    return model


def pictures(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    blobs = draw.integers(0, 255, (count, 12, 12, 3), dtype=np.uint8)
    return [cv2.resize(blob, (width, height), interpolation=cv2.INTER_CUBIC) for blob in blobs]


def told(result: pd.PanopticSegmentation) -> tuple[object, ...]:
    segments = [(s.id, s.category_id, s.isthing, s.area, s.box, s.query, round(s.score, 4)) for s in result.segments]
    return segments, [(d.query, d.reason, d.category_id, d.area, d.into) for d in result.dropped]


def remerged(file: pd.ExportedPredictor, images: list[np.ndarray]) -> list[pd.PanopticSegmentation]:
    """What this package's own merger makes of the logits and masks that a file computes."""
    names = ("logits", "mask_logits", "mask_places")
    values = file.run(np.stack(images), names, None)
    logits, masks, places = (torch.from_numpy(value) for value in values)
    settings, (height, width) = file.settings, images[0].shape[:2]
    size = (height, width) if settings.short_side is None else target_size((height, width), settings.short_side, 1333)
    things, stuff = settings.thresholds(file.notes["no_object"])
    return [
        pd.merge_panoptic(
            logits[index],
            masks[places[:, 0] == index],
            categories=TABLE,
            size=size,
            target_size=(height, width),
            threshold=things,
            stuff_threshold=stuff,
            min_area=settings.min_area,
            min_visible=settings.min_visible,
            duplicate_stuff=settings.duplicate_stuff,
            no_object=file.notes["no_object"],
            queries=places[places[:, 0] == index, 1],
        )
        for index in range(len(images))
    ]


def assert_same(own: pd.PanopticSegmentation, theirs: pd.PanopticSegmentation, *, exact: bool) -> None:
    """The same segments and dropped queries; where random masks come within rounding of each other, but for a few pixels."""
    if exact:
        assert told(own) == told(theirs)
    for of in (
        lambda r: [(s.id, s.category_id, s.query) for s in r.segments],
        lambda r: [(d.query, d.reason, d.into) for d in r.dropped],
    ):
        assert of(own) == of(theirs)
    assert (own.segment_map == theirs.segment_map).mean() > (0.99999 if exact else 0.998)
    for segment in own.segments:  # areas and boxes are those of the map
        rows, columns = np.nonzero(own.mask(segment))
        left, top, width, height = segment.box
        assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (left, left + width, top, top + height)
        assert segment.area == len(rows)

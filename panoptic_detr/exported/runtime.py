"""Predicting with an exported file: the same call and the same result as the predictor's."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.types import fits_type, type_name
from panoptic_detr.errors import InputError
from panoptic_detr.exported.engines import Content, Engine, open_engine
from panoptic_detr.images import Picture, as_rgb, check_is_picture
from panoptic_detr.panoptic import Dropped, DropReason, PanopticSegmentation, PicturePredictor, Segment

Notes = dict[str, Any]  # what a file says about itself, as JSON
FORMAT = 1  # version of what a file says about itself
REASONS: tuple[DropReason | None, ...] = (
    *(None, "no object", "low score", "no category", "covered", "small", "merged", "suppressed"),
)
CODE = {reason: code for code, reason in enumerate(REASONS)}
SETTINGS: dict[str, type] = {  # inputs of a file, beside the image
    "threshold": np.float32,
    "stuff_threshold": np.float32,
    "min_area": np.int64,
    "min_visible": np.float32,
    "max_segments": np.int64,
    "keep_first": np.bool_,
    "short_side": np.int64,
    "long_side": np.int64,
}
SCHEMA: dict[str, object] = {  # of what a file says about itself
    "format": int,
    "raw": bool,
    "no_object": bool,
    "precision": str,
    "size": Sequence[int] | None,
    "settings": Mapping[str, object],
    "categories": Mapping[str, object],
    "categories.labels": Literal["contiguous", "id"],
    "categories.num_labels": int,
    "categories.categories": Sequence[Mapping[str, object]],
}
RESULTS = ("segment_map", "ids", "category_ids", "scores", "areas", "boxes", "reasons", "joined")


class ExportedPredictor(PicturePredictor[np.ndarray]):
    """Pictures in, panoptic maps out, by a file that `export` wrote.

    Args:
        path: the file.
        device: "cpu", or "auto", which takes a GPU for ONNX files if there is one; of those also "cuda", "cuda:1", of
            OpenVINO's "gpu", "npu".
        threads: of the runtime; by default as many as there are cores.
        content: of the file, where it is not written yet.
        precision: "bf16" lets OpenVINO compute in bfloat16; other files keep the one that they were written with.

    Attributes:
        path: the file.
        categories: the class table.
        settings: those that the file was written with; others may be set, except for the image size of a file of fixed size.
        batch_size: pictures of a list that go through the model together, if they are of one size.
        precision: of the weights in the file.
        notes: everything that the file says about itself.

    Raises:
        InputError: no such file, or a file that is damaged, comes from elsewhere, or gives no maps; no such device here.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int = 0,
        content: Content | None = None,
        precision: str = "fp32",
    ) -> None:
        self.path = Path(path)
        self.engine = open_engine(self.path, device, threads=threads, content=content, precision=precision)
        self.device = self.engine.device
        self.notes = read_notes(self.path, self.engine)
        if self.notes["raw"]:
            raise InputError(f"{self.path} gives logits, boxes and masks, no maps: it was exported with --raw; export without")
        try:
            self.categories = CategoryTable.from_dict(self.notes["categories"])
            self.settings = InferenceSettings.from_dict(self.notes["settings"])
        except InputError as error:
            raise damaged(self.path, str(error)) from None
        self.precision: str = self.notes["precision"]
        self.batch_size = 1 if self.device == "cpu" else 8

    def run(self, pictures: np.ndarray, names: Iterable[str], given: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """Outputs of the file, by their names, for (B, H, W, 3) uint8 pictures."""
        return self.engine.run(list(names), {"image": pictures, **(self._inputs(self.settings) if given is None else given)})

    def _read(self, picture: Picture) -> np.ndarray:
        check_is_picture(picture)
        return as_rgb(picture)

    def _predict(self, prepared: list[np.ndarray], settings: InferenceSettings) -> list[PanopticSegmentation]:
        given = self._inputs(settings)
        maps: dict[int, PanopticSegmentation] = {}
        while left := [index for index in range(len(prepared)) if index not in maps]:
            shape = prepared[left[0]].shape
            group = [index for index in left if prepared[index].shape == shape][: self.batch_size]
            found = self.run(np.stack([prepared[index] for index in group]), RESULTS, given)
            rows = zip(*found, strict=True)
            maps.update((index, self._segmentation(*row)) for index, row in zip(group, rows, strict=True))
        return [maps[index] for index in range(len(prepared))]

    def _segmentation(
        self,
        segment_map: np.ndarray,
        ids: np.ndarray,
        category_ids: np.ndarray,
        scores: np.ndarray,
        areas: np.ndarray,
        boxes: np.ndarray,
        reasons: np.ndarray,
        joined: np.ndarray,
    ) -> PanopticSegmentation:
        """One image's rows of the outputs as a result."""
        table, segments, dropped = self.categories.by_id, [], []
        if np.isnan(scores).any():
            raise InputError("class logits are not finite numbers; the weights in the file or the images contain NaN")
        for query, (id, category) in enumerate(zip(ids.tolist(), category_ids.tolist(), strict=True)):
            score, area = float(scores[query]), int(areas[query])
            if id:
                left, top, width, height = boxes[query].tolist()
                segments.append(Segment(id, category, table[category].isthing, score, area, (left, top, width, height), query))
            elif (reason := REASONS[int(reasons[query])]) is not None:
                into = int(joined[query]) or None
                dropped.append(Dropped(query, reason, score, category if category >= 0 else None, area, into))
        return PanopticSegmentation(segment_map, segments, self.categories, dropped)

    def _inputs(self, settings: InferenceSettings) -> dict[str, np.ndarray]:
        """What the settings are as inputs of the file."""
        fixed = InferenceSettings.from_dict(self.notes["settings"])
        sides = [(s.short_side, s.long_side) for s in (settings, fixed)]
        if (settings.image_mean, settings.image_std) != (fixed.image_mean, fixed.image_std):
            raise InputError(
                f"{self.path} normalises images as its model was trained; image_mean and image_std cannot be changed"
            )
        if self.notes["size"] and sides[0] != sides[1]:
            height, width = self.notes["size"]
            raise InputError(f"{self.path} was exported for {width} x {height} pixels, so it has no short_side and long_side")
        return input_values(settings, self.notes)


def setting_values(settings: InferenceSettings, no_object: bool) -> dict[str, float | int | bool]:
    """Settings as the inputs of a file: plain numbers, 0 for "none"."""
    things, stuff = settings.thresholds(no_object)
    return {
        "threshold": things,
        "stuff_threshold": stuff,
        "min_area": settings.min_area,
        "min_visible": settings.min_visible,
        "max_segments": settings.max_segments or 0,
        "keep_first": settings.duplicate_stuff == "keep_first",
        "short_side": settings.short_side or 0,
        "long_side": settings.long_side,
    }


def read_notes(path: Path, engine: Engine) -> Notes:
    """What the file says about itself.

    Raises:
        InputError: it was not written by `export`, or by a newer one, or it is damaged.
    """
    if engine.notes is None:
        raise InputError(
            f"{path} is a file of {engine.kind}, but not one that `panoptic-detr export` wrote; it runs in its runtime alone"
        )
    try:
        notes: Notes = json.loads(engine.notes)
    except ValueError:
        raise damaged(path, "what it says about itself is no JSON") from None
    if not isinstance(notes, dict):
        raise damaged(path, f"what it says about itself must be names with values, but is a {type(notes).__name__}")
    if isinstance(notes.get("format"), int) and notes["format"] > FORMAT:
        raise InputError(f"{path} was written by a newer panoptic_detr (format {notes['format']}); update this one")
    for key, kind in SCHEMA.items():
        value: Any = notes
        for part in key.split("."):
            value = value.get(part)
        if not fits_type(value, kind):
            raise damaged(path, f"its {key!r} must be {type_name(kind)}, but is {'missing' if value is None else repr(value)}")
    if notes["size"] is not None and len(notes["size"]) != 2:
        raise damaged(path, f"its 'size' must be height and width, but is {notes['size']}")
    check_ports(path, engine, notes)
    return notes


def input_values(settings: InferenceSettings, notes: Notes) -> dict[str, np.ndarray]:
    """Settings as inputs of the file that says this about itself."""
    values = setting_values(settings, notes["no_object"])
    return {name: np.array(values[name], SETTINGS[name]) for name in setting_names(notes)}


def setting_names(notes: Notes) -> list[str]:
    """The settings that are inputs of a file."""
    sides = [] if notes["size"] else ["short_side", "long_side"]
    return sides if notes["raw"] else [name for name in SETTINGS if not name.endswith("_side")] + sides


def check_ports(path: Path, engine: Engine, notes: Notes) -> None:
    """Raise `InputError` unless a file has the inputs and outputs that it is run with."""
    results = ("logits", "query_boxes") if notes["raw"] else RESULTS
    for kind, wanted, there in (
        ("input", ["image", *setting_names(notes)], engine.inputs),
        ("output", results, engine.outputs),
    ):
        if missing := [name for name in wanted if name not in there]:
            raise damaged(path, f"it has no {kind} {', '.join(missing)}")


def damaged(path: Path, fault: str) -> InputError:
    """The error of a file that `export` did not write like this."""
    return InputError(f"{path} is damaged, or was changed after it was written: {fault}; export the model again")

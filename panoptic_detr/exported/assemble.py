"""One graph from pixels to the panoptic map: the traced networks, and what the predictor does before, between and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.exported.graph import Graph, Value, as_model
from panoptic_detr.exported.merging import Chosen, choose, make_axis, merge_image
from panoptic_detr.exported.parts import PER_QUERY
from panoptic_detr.exported.resizing import resized
from panoptic_detr.exported.runtime import SETTINGS, setting_values

MASKS_AT_ONCE = 4


@dataclass(frozen=True)
class Networks:
    """Traced graphs: images to queries, chosen queries to masks (None for a detector)."""

    detection: onnx.GraphProto
    segmentation: onnx.GraphProto | None


def assemble(
    networks: Networks,
    table: CategoryTable,
    settings: InferenceSettings,
    *,
    no_object: bool,
    size: Sequence[int] | None,
    raw: bool,
    metadata: Mapping[str, str],
    for_openvino: bool = False,
) -> onnx.ModelProto:
    """Build the file.

    Args:
        networks: traced.
        table: what labels mean.
        settings: defaults of the inputs.
        no_object: the last class slot means "no object".
        size: (height, width) that every picture is resized to; None keeps the aspect, as the settings say.
        raw: logits, boxes and masks of all queries instead of maps.
        metadata: to travel with the file.
        for_openvino: the runtime that the file is for.
    """
    graph = Graph(for_openvino=for_openvino)
    with graph:
        image = graph.input("image", np.uint8, ["B", "H", "W", 3])
        given = setting_values(settings, no_object)
        used = ["short_side", "long_side"] if raw else list(SETTINGS)
        values = {name: setting(graph, name, given[name]) for name in used if not (size and name.endswith("_side"))}
        statistics = (settings.image_mean or IMAGENET_MEAN, settings.image_std or IMAGENET_STD)
        pixels = resized(graph, image, values.get("short_side"), values.get("long_side"), size, statistics)
        found = graph.splice(networks.detection, {"input_0": pixels})
        outputs: dict[str, tuple[Value, Sequence[str | int] | None]] = {
            "logits": (found[0], ["B", "Q", "C"]),
            "query_boxes": (found[1], ["B", "Q", 4]),
        }
        if networks.segmentation is not None:
            chosen = everything(graph, found[0]) if raw else choose(graph, found[0], table, no_object, values)
            places = graph.Transpose(graph.NonZero(chosen.kept), perm=[1, 0])  # (K, 2)
            masks = make_masks(graph, networks.segmentation, found, places)
            outputs |= {"mask_logits": (masks, ["K", "h", "w"]), "mask_places": (places, ["K", 2])}
            if not raw:
                outputs = panoptic(graph, image, pixels, chosen, places, masks, values) | outputs
        named = {name: (rename(graph, value, name), shape) for name, (value, shape) in outputs.items()}
    model = as_model(graph.proto("panoptic_detr", named))
    helper.set_model_props(model, dict(metadata))
    return model


def setting(graph: Graph, name: str, default: float | int | bool) -> Value:
    """An input that need not be given."""
    value = graph.input(name, SETTINGS[name], [])
    graph.initializers.append(numpy_helper.from_array(np.array(default, SETTINGS[name]), name))
    return value


def rename(graph: Graph, value: Value, name: str) -> Value:
    """The value under the name of an output."""
    graph.nodes.append(helper.make_node("Identity", [value.name], [name]))
    return Value(name, value.kind)


def everything(graph: Graph, logits: Value) -> Chosen:
    """All queries kept, whatever they are."""
    kept = graph.Equal(graph.ArgMax(logits, axis=-1, keepdims=0), -1)
    return Chosen(kept, kept, kept, kept, ~kept)


def make_masks(graph: Graph, segmentation: onnx.GraphProto, found: Sequence[Value], places: Value) -> Value:
    """Mask logits (K, h, w) of the queries at places (K, 2), a few at a time."""
    rows, maps = [graph.GatherND(value, places) for value in found[1:PER_QUERY]], found[PER_QUERY:]
    images, single = graph.Gather(places, 0, axis=1), found[0].size(0).equals(1)
    body = Segments(graph, segmentation, rows, list(maps), images, single)
    height, width = (maps[-1].size(axis) for axis in (2, 3))
    none = graph.full(0.0, np.float32, 0, height, width)
    times = (places.size(0) + (MASKS_AT_ONCE - 1)) / MASKS_AT_ONCE
    (masks,) = graph.loop(body, [none], [3], times=times)
    return masks


@dataclass(frozen=True)
class Segments:
    """Body of the loop over chosen queries."""

    graph: Graph
    segmentation: onnx.GraphProto
    rows: list[Value]
    maps: list[Value]
    images: Value
    single: Value

    def __call__(self, inner: Graph, number: Value, states: list[Value]) -> tuple[None, list[Value], list[Value]]:
        """Add the masks of the next few."""
        start = number * MASKS_AT_ONCE
        images = self.images.cut(start, start + MASKS_AT_ONCE)
        # One image: its maps serve all queries as they are. Several: a copy for each query.
        images = inner.Slice(images, inner.list_of(0), inner.Where(self.single, inner.constant(1, np.int64), 2**62).reshape(1))
        parts = [value.cut(start, start + MASKS_AT_ONCE) for value in self.rows]
        parts += [inner.Gather(value, images, axis=0) for value in self.maps]
        (masks,) = inner.splice(self.segmentation, {f"input_{index}": part for index, part in enumerate(parts)})
        return None, [inner.Concat(states[0], masks, axis=0)], []


def panoptic(
    graph: Graph, image: Value, pixels: Value, chosen: Chosen, places: Value, masks: Value, settings: Mapping[str, Value]
) -> dict[str, tuple[Value, Sequence[str | int] | None]]:
    """Maps and segments of all images, as outputs."""
    size = [image.size(axis) for axis in (1, 2)]
    rows, columns = (make_axis(graph, masks.size(1 + axis), pixels.size(2 + axis), size[axis]) for axis in (0, 1))

    def step(inner: Graph, number: Value, _: list[Value]) -> tuple[None, list[Value], list[Value]]:
        return None, [], merge_image(inner, number, chosen, places, masks, size, (rows, columns), settings)

    segment_map, ids, areas, boxes, reasons, into = graph.loop(step, [], [], times=image.size(0))
    reasons = graph.Where(chosen.kept, reasons, chosen.reasons)
    return {
        "segment_map": (segment_map, ["B", "H", "W"]),
        "ids": (ids, ["B", "Q"]),
        "category_ids": (chosen.categories, ["B", "Q"]),
        "scores": (chosen.scores, ["B", "Q"]),
        "areas": (areas, ["B", "Q"]),
        "boxes": (boxes, ["B", "Q", 4]),
        "reasons": (reasons, ["B", "Q"]),
        "joined": (into, ["B", "Q"]),
    }

"""An ONNX graph as the two files of OpenVINO, with deformable sampling as bags of table rows.

What GridSample reads, and its products with the weights, go through memory. Here nothing of that size exists: of some queries
at a time, every head sums the four cells around each of its points, as `models.deformable.table` does. ONNX has no such
operator: what is traced for OpenVINO holds one node for the whole (`models.deformable.attention.WholeSampling`).
"""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import openvino
from openvino import Node, Output
from openvino import opset13 as ops
from openvino.frontend import FrontEndManager
from openvino.frontend.onnx import ConversionExtension

from panoptic_detr.exported.engines import NOTES, Content
from panoptic_detr.exported.graph import DOMAIN, SAMPLE_LEVELS

BAGS_AT_ONCE = 2048  # queries x heads whose rows and factors fit the cache; OpenVINO's bags want a fixed number


class Sizes(NamedTuple):
    """What is the same for every picture: heads M, levels L, points P, width d of a head."""

    heads: int
    levels: int
    points: int
    width: int


class Beside(NamedTuple):
    """The two cells beside each point along an axis: the lower one, the step to the other, and the share of each.

    The step is 0 where the level has one cell only, and the other's share then too.
    """

    low: Node
    step: Node
    share: Node
    other_share: Node


def openvino_files(model: onnx.ModelProto, notes: dict[str, object]) -> Content:
    """The `.xml` and `.bin` of a graph that `assemble` made.

    Args:
        model: changed: inputs lose their defaults, which OpenVINO would take for constants.
        notes: what the files say about themselves.
    """
    inputs = {port.name for port in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    reader = FrontEndManager().load_by_framework("onnx")
    reader.add_extension(extension())
    converted = reader.convert(reader.load(BytesIO(model.SerializeToString())))
    without_copies(converted)
    converted.set_rt_info(json.dumps(notes), NOTES)
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(converted, path, compress_to_fp16=False)
        return {ending: path.with_suffix(ending).read_bytes() for ending in (".bin", ".xml")}


def without_copies(model: openvino.Model) -> None:
    """Give outputs their names in place: OpenVINO would copy whole maps to name them."""
    for result in model.get_results():
        node = result.input_value(0).get_node()
        if node.get_type_name() == "Identity":
            named, source = node.output(0).get_names(), node.input_value(0)
            result.input(0).replace_source_output(source)
            source.get_tensor().add_names(named)


def extension() -> ConversionExtension:
    """What OpenVINO needs to read a graph that samples by one node."""

    def convert(node: "openvino.frontend.NodeContext") -> list[Output]:
        sizes = Sizes(**{name: node.get_attribute(name) for name in Sizes._fields})
        return sample([node.get_input(index) for index in range(node.get_input_size())], sizes).outputs()

    return ConversionExtension(SAMPLE_LEVELS, DOMAIN, convert)


def sample(inputs: Sequence[Output], sizes: Sizes) -> Node:
    """The node in OpenVINO's operators: (B, Q, M * d), see `models.deformable.sample_levels`."""
    value, locations, weights, cells = inputs
    heads, samples = sizes.heads, sizes.levels * sizes.points
    batch, queries, tokens = dimension(weights, 0), dimension(weights, 1), dimension(value, 1)
    points = ops.reshape(locations, whole(-1, samples, 2), special_zero=False)  # (B * Q * M, L * P, 2)
    shares = ops.reshape(weights, whole(-1, samples), special_zero=False)
    table = ops.reshape(value, whole(-1, sizes.width), special_zero=False)  # (B * N * M, d)
    image = ops.multiply(below(batch), ops.multiply(tokens, whole(heads)))  # (B,) first row of each
    first = ops.add(ops.reshape(image, whole(-1, 1, 1), special_zero=False), ops.constant(np.arange(heads)))  # (B, 1, M)
    first = ops.broadcast(first, ops.concat([batch, queries, whole(heads)], axis=0))  # (B, Q, M)
    first = ops.convert(ops.reshape(first, whole(-1, 1), special_zero=False), "i32")
    count = ops.multiply(ops.multiply(batch, queries), whole(heads))  # (1,) bags
    turns = ops.divide(ops.add(count, whole(BAGS_AT_ONCE - 1)), whole(BAGS_AT_ONCE))
    body = bags(sizes)
    loop = ops.loop(ops.squeeze(turns, whole(0)), ops.constant(True))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 1])  # no number of the turn; the second result says whether to go on
    *sliced, rows, levels = body.get_parameters()
    missing = ops.subtract(ops.multiply(turns, whole(BAGS_AT_ONCE)), count)
    for parameter, given in zip(sliced, (points, shares, first), strict=True):
        loop.set_sliced_input(parameter, in_turns(given, missing).output(0), 0, 1, 1, -1, 0)
    loop.set_invariant_input(rows, table.output(0))
    loop.set_invariant_input(levels, level_rows(cells, sizes.points).output(0))
    sums = loop.get_concatenated_slices(body.get_results()[0].output(0), 0, 1, 1, -1, 0)
    sums = ops.reshape(sums, whole(-1, sizes.width), special_zero=False)
    sums = ops.slice(sums, whole(0), count, whole(1), whole(0))
    return ops.reshape(sums, ops.concat([batch, queries, whole(heads * sizes.width)], axis=0), special_zero=False)


def bags(sizes: Sizes) -> openvino.Model:
    """What is done in a turn.

    Of `BAGS_AT_ONCE` bags: points (1, K, S, 2) where 0..1 spans their level, shares (1, K, S) and the first row of their image
    and head (1, K, 1); the table (R, d), and for each sample width, height and first cell of its level (3, 1, S). Gives the
    sums (1, K, d).
    """
    samples = sizes.levels * sizes.points
    turn = [1, BAGS_AT_ONCE]
    parameters = [
        ops.parameter([*turn, samples, 2], np.float32),
        ops.parameter([*turn, samples], np.float32),
        ops.parameter([*turn, 1], np.int32),
        ops.parameter([-1, sizes.width], np.float32),
        ops.parameter([3, 1, samples], np.float32),
    ]
    points, shares, first = (ops.squeeze(parameter, whole(0)) for parameter in parameters[:3])
    x, y = planes(ops.transpose(points, whole(2, 0, 1)), 2)
    width, height, start = planes(parameters[4], 3)
    across, down = beside(x, width), beside(y, height)
    cell = ops.add(ops.add(across.low, ops.multiply(down.low, width)), start)
    heads = ops.constant(np.int32(sizes.heads))
    upper = ops.add(ops.multiply(ops.convert(cell, "i32"), heads), first)
    right, down_one = (ops.multiply(ops.convert(step, "i32"), heads) for step in (across.step, ops.multiply(down.step, width)))
    lower = ops.add(upper, down_one)
    rows = ops.concat([upper, ops.add(upper, right), lower, ops.add(lower, right)], axis=1)  # (K, 4 * S)
    above, under = ops.multiply(down.share, shares), ops.multiply(down.other_share, shares)
    products = [ops.multiply(one, other) for one in (above, under) for other in (across.share, across.other_share)]
    sums = ops.embedding_bag_packed_sum(parameters[3], rows, ops.concat(products, axis=1))
    return openvino.Model([ops.unsqueeze(sums, whole(0)), ops.constant(True)], parameters, "bags")


def beside(position: Node, size: Node) -> Beside:
    """The cells beside positions (K, S) where 0..1 spans `size` (1, S) cells; outside of the level their shares are 0."""
    one, half = (ops.constant(np.float32(number)) for number in (1, 0.5))
    place = ops.subtract(ops.multiply(position, size), half)  # cell i has its centre at i
    last = ops.subtract(size, one)
    step = ops.minimum(last, one)
    low = ops.maximum(ops.minimum(ops.floor(place), ops.subtract(last, one)), ops.constant(np.float32(0)))
    off = ops.subtract(place, low)
    share, other = (ops.relu(ops.subtract(one, ops.abs(distance))) for distance in (off, ops.subtract(off, one)))
    return Beside(low, step, share, ops.multiply(other, step))


def level_rows(sizes: Output, points: int) -> Node:
    """Width, height and first cell of the level of each sample: (3, 1, L * P), of (width, height) (L, 2)."""
    width, height = planes(ops.transpose(sizes, whole(1, 0)), 2)  # (L,) each
    areas = ops.multiply(width, height)
    start = ops.cum_sum(areas, ops.constant(np.int64(0)), exclusive=True)
    rows = ops.unsqueeze(ops.concat([ops.unsqueeze(row, whole(0)) for row in (width, height, start)], axis=0), whole(2))
    spread = ops.tile(rows, whole(1, 1, points))  # (3, L, P)
    return ops.reshape(spread, whole(3, 1, -1), special_zero=False)


def in_turns(values: Node, missing: Node) -> Node:
    """Rows (K, ...) as (turns, BAGS_AT_ONCE, ...), filled up with zeros."""
    shape = [size.get_length() for size in list(values.get_output_partial_shape(0))[1:]]
    none = whole(*(0 for _ in (0, *shape)))
    last = ops.concat([missing, whole(*(0 for _ in shape))], axis=0)
    return ops.reshape(ops.pad(values, none, last, "constant"), whole(-1, BAGS_AT_ONCE, *shape), special_zero=False)


def planes(values: Node, number: int) -> list[Node]:
    """The parts of the first axis."""
    return [ops.squeeze(part, whole(0)) for part in ops.split(values, ops.constant(np.int64(0)), number).outputs()]


def dimension(values: Output, axis: int) -> Node:
    """(1,) size of an axis."""
    return ops.gather(ops.shape_of(values), whole(axis), ops.constant(np.int64(0)))


def below(count: Node) -> Node:
    """The whole numbers from 0 that are less than a count (1,)."""
    zero, one = (ops.constant(np.int64(number)) for number in (0, 1))
    return ops.range(zero, ops.squeeze(count, whole(0)), one, "i64")


def whole(*numbers: int) -> Node:
    """Whole numbers as a constant (n,)."""
    return ops.constant(np.array(numbers, np.int64))

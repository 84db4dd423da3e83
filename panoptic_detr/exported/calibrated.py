"""Networks that compute in 8 bits: what their products read and hold becomes whole numbers, by ONNX Runtime's quantisation.

ONNX Runtime computes a product in bytes where its result is bytes too; OpenVINO is faster where results stay float32, since it
then adds, cuts and rounds them on the way out.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from panoptic_detr.exported.assemble import Networks
from panoptic_detr.exported.graph import DOMAIN, OPSET, SAMPLE_LEVELS, as_model
from panoptic_detr.exported.parts import AVERAGES, PER_QUERY, trace
from panoptic_detr.models.deformable import sample_with_grid

PRODUCTS = ("Conv", "MatMul", "Gemm")
SUREST = 8  # queries of a picture whose masks are looked at
Inputs = dict[str, np.ndarray]


def in_bytes(networks: Networks, pictures: Iterable[np.ndarray], *, no_object: bool, results: bool) -> Networks:
    """Networks whose products with weights are computed in 8 bits.

    What a product reads has one scale and one zero, by the least and the largest value seen; its weights have a scale for each
    channel.

    Args:
        networks: traced.
        pictures: (3, h, w) float32, as the network sees them; looked through twice.
        no_object: the last class slot means "no object".
        results: of products are bytes too.
    """
    detection = quantized(networks.detection, shown(pictures), results=results)
    if networks.segmentation is None:
        return Networks(detection, None)
    taken = {port.name for port in networks.segmentation.input}
    rows = inputs_of_masks(networks.detection, shown(pictures), taken, no_object)
    return Networks(detection, quantized(networks.segmentation, rows, results=results))


def shown(pictures: Iterable[np.ndarray]) -> Iterator[Inputs]:
    """What the network of queries gets for every picture."""
    return ({"input_0": picture[None]} for picture in pictures)


def inputs_of_masks(detection: onnx.GraphProto, seen: Iterable[Inputs], taken: set[str], no_object: bool) -> Iterator[Inputs]:
    """What the network of masks gets for every picture: the surest queries."""
    from onnxruntime import InferenceSession

    session = InferenceSession(model_of(detection).SerializeToString(), providers=["CPUExecutionProvider"])
    for given in seen:
        logits, *found = (np.asarray(value) for value in session.run(None, given))
        scores = logits[0, :, : -1 if no_object else None].max(1)  # (Q,)
        queries = np.argsort(-scores)[:SUREST]
        values = [value[0, queries] for value in found[: PER_QUERY - 1]] + found[PER_QUERY - 1 :]
        yield {name: value for index, value in enumerate(values) if (name := f"input_{index}") in taken}


def quantized(graph: onnx.GraphProto, inputs: Iterator[Inputs], *, results: bool) -> onnx.GraphProto:
    """A graph whose products with weights read and hold bytes, by the values that it has for these inputs (see `in_bytes`)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Given(CalibrationDataReader):
        def get_next(self) -> Inputs | None:
            return next(inputs, None)

    graph = with_plain_constants(graph)
    weights = {tensor.name for tensor in graph.initializer if not tensor.name.endswith(AVERAGES)}
    chosen = [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] in weights]
    if not chosen:
        return graph
    with TemporaryDirectory() as folder, without_advice():
        path = Path(folder, "model.onnx")
        quantize_static(
            model_of(graph),
            path,
            Given(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={} if results else {"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
        )
        return with_plain_outputs(onnx.load(path).graph)


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A graph as a model of its own that ONNX Runtime can run, whose outputs may have any size."""
    model = as_model(graph, functions_of(graph))
    for port in model.graph.output:
        port.type.tensor_type.ClearField("shape")
    return model


class Grid(nn.Module):
    """Deformable sampling as ONNX has it."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
        """See `models.deformable.attention.WholeSampling`."""
        shapes = [(size[1], size[0]) for size in sizes.long()]
        return sample_with_grid(value, shapes, locations, weights)


def functions_of(graph: onnx.GraphProto) -> list[onnx.FunctionProto]:
    """What ONNX Runtime needs to run a graph that samples by one node."""
    node = next((node for node in graph.node if node.domain == DOMAIN), None)
    if node is None:
        return []
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    heads, levels, points, width = (sizes[name] for name in ("heads", "levels", "points", "width"))
    examples = [
        torch.zeros(1, 4 * levels, heads, width),
        torch.zeros(1, 3, heads, levels, points, 2),
        torch.zeros(1, 3, heads, levels, points),
        torch.full((levels, 2), 2.0),
    ]
    body = trace(Grid(), examples, 1, [{0: "B", 1: "N"}, {0: "B", 1: "Q"}, {0: "B", 1: "Q"}, {}]).graph
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in body.initializer]
    inputs, outputs = ([port.name for port in ports] for ports in (body.input, body.output))
    opsets = [helper.make_opsetid("", OPSET)]
    nodes = [*constants, *body.node]
    return [helper.make_function(DOMAIN, SAMPLE_LEVELS, inputs, outputs, nodes, opsets, attributes=list(sizes))]


def with_plain_constants(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The graph without names for names: PyTorch hands on equal constants by `Identity`, but a bias must be a constant here."""
    plain, constants = onnx.GraphProto(), {tensor.name: tensor.name for tensor in graph.initializer}
    plain.CopyFrom(graph)
    del plain.node[:]
    outputs = {port.name for port in graph.output}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            constants[node.output[0]] = constants[node.input[0]]
        else:
            copied = plain.node.add()
            copied.CopyFrom(node)
            copied.input[:] = [constants.get(name, name) for name in node.input]
    return plain


def with_plain_outputs(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The graph with a node behind every output: ONNX Runtime 1.32 aborts where values unfolded from bytes enter a loop."""
    for port in graph.output:
        inner = f"{port.name}/unfolded"
        for node in graph.node:
            node.input[:] = [inner if name == port.name else name for name in node.input]
            node.output[:] = [inner if name == port.name else name for name in node.output]
        graph.node.append(helper.make_node("Concat", [inner], [port.name], f"{port.name}/plain", axis=0))
    return graph


@contextmanager
def without_advice() -> Iterator[None]:
    """Without the library's advice to prepare the model, which it gives to everybody."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

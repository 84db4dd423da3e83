"""Deformable sampling as one node: in OpenVINO's operators and as a function for ONNX Runtime, it gives what PyTorch gives."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from panoptic_detr.models import tracing
from panoptic_detr.models.deformable import attention

onnx = pytest.importorskip("onnx")
HEADS, POINTS, WIDTH = 2, 4, 3
SHAPES = [
    [(5, 7), (3, 4), (1, 2)],
    [(2, 3), (1, 1), (1, 1)],
    [(40, 61), (20, 31), (1, 16)],
]


class Sampling(nn.Module):
    """`sample_levels` of maps whose sizes are the levels', as in a detector."""

    def forward(self, locations: torch.Tensor, weights: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, M * d, h, w)."""
        value = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2).unflatten(-1, (HEADS, WIDTH))
        return attention.sample_levels(value, [(level.shape[2], level.shape[3]) for level in maps], locations, weights)


def inputs_of(shapes: Sequence[tuple[int, int]], batch: int, queries: int) -> list[torch.Tensor]:
    """Points inside, on the border, and far outside."""
    levels = len(shapes)
    locations = torch.rand(batch, queries, HEADS, levels, POINTS, 2) * 1.6 - 0.3
    locations[:, ::7] = torch.randint(-2, 4, locations[:, ::7].shape).float()
    weights = torch.rand(batch, queries, HEADS, levels, POINTS)
    return [locations, weights, *(torch.randn(batch, HEADS * WIDTH, *shape) for shape in shapes)]


@pytest.fixture(scope="module")
def graph():
    """Traced for any sizes, with one node for the sampling."""
    stream, names = io.BytesIO(), ["locations", "weights", "map_0", "map_1", "map_2"]
    axes = {name: {0: "B", 2: f"h_{name}", 3: f"w_{name}"} for name in names} | {name: {0: "B", 1: "Q"} for name in names[:2]}
    with tracing.whole_sampling(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Sampling(), tuple(inputs_of(SHAPES[0], 2, 6)), stream, dynamo=False, opset_version=18, input_names=names,
            output_names=["sums"], dynamic_axes=axes,
        )  # fmt: skip
    found = onnx.load_model_from_string(stream.getvalue()).graph
    assert [node.op_type for node in found.node if node.domain] == ["SampleLevels"]
    assert "GridSample" not in {node.op_type for node in found.node}
    return found


@pytest.mark.parametrize(("shapes", "batch", "queries"), [(SHAPES[0], 1, 9), (SHAPES[1], 3, 5), (SHAPES[2], 2, 1300)])
def test_openvino_sums_bags(graph, shapes, batch, queries):
    """Of levels with one cell, of several pictures, and of more bags than are done at a time."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    from openvino.frontend import FrontEndManager

    from panoptic_detr.exported import engines
    from panoptic_detr.exported import graph as graphs
    from panoptic_detr.exported import openvino as sampling

    assert batch * queries * HEADS > sampling.BAGS_AT_ONCE or queries < 10
    reader = FrontEndManager().load_by_framework("onnx")
    reader.add_extension(sampling.extension())
    model = reader.convert(reader.load(io.BytesIO(graphs.as_model(graph).SerializeToString())))
    (loop,) = (node for node in model.get_ops() if node.get_type_name() == "Loop")
    assert "EmbeddingBagPackedSum" in {node.get_type_name() for node in loop.get_function().get_ops()}
    compiled = engines.openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = inputs_of(shapes, batch, queries)
    (sums,) = compiled([tensor.numpy() for tensor in given]).values()
    np.testing.assert_allclose(sums, Sampling()(*given), atol=2e-5)


def test_onnx_runtime_reads_a_function(graph):
    """It calibrates what is written for OpenVINO."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from panoptic_detr.exported.calibrated import model_of

    session = runtime.InferenceSession(model_of(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    given = inputs_of(SHAPES[2], 2, 50)
    (sums,) = session.run(None, {port.name: tensor.numpy() for port, tensor in zip(session.get_inputs(), given, strict=True)})
    np.testing.assert_allclose(sums, Sampling()(*given), atol=2e-5)

"""Weights in fewer bytes: half precision, or 8 bits with a scale for each row. Runtimes unfold them when they load a file."""

from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 1024  # values from which on a tensor is worth it; biases and norms are not


def smaller_weights(graph: onnx.GraphProto, precision: Literal["fp16", "int8"]) -> None:
    """Keep the weights of a graph in fewer bytes, in place.

    Args:
        graph: whose float32 constants are weights.
        precision: "fp16", or "int8": symmetric, the largest value of each row of the first axis being 127.
    """
    kept, nodes = [], []
    for tensor in graph.initializer:
        large = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and np.prod(tensor.dims) >= SMALLEST
        if not large:
            kept.append(tensor)
            continue
        values = numpy_helper.to_array(tensor)
        tensors, node = half(tensor.name, values) if precision == "fp16" else bytes_of(tensor.name, values)
        kept += tensors
        nodes.append(node)
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def half(name: str, values: np.ndarray) -> tuple[list[TensorProto], onnx.NodeProto]:
    """Half precision, and the node that makes it float32."""
    largest = np.finfo(np.float16).max
    tensor = numpy_helper.from_array(values.clip(-largest, largest).astype(np.float16), f"{name}/half")
    return [tensor], helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)


def bytes_of(name: str, values: np.ndarray) -> tuple[list[TensorProto], onnx.NodeProto]:
    """8 bits, and the node that multiplies them with their scales; matrices (in, out) have a scale for each column."""
    axis = 1 if values.ndim == 2 else 0
    others = tuple(index for index in range(values.ndim) if index != axis)
    scale = np.maximum(np.abs(values).max(axis=others), 1e-12) / 127  # (rows,)
    spread = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    whole = numpy_helper.from_array(np.round(values / spread).astype(np.int8), f"{name}/whole")
    scales = numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale")
    return [whole, scales], helper.make_node("DequantizeLinear", [whole.name, scales.name], [name], axis=axis)

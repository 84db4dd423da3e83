"""ONNX graphs written in Python: values with operators, and nodes that are called like functions.

`graph.Gather(x, rows, axis=1)` adds a node and returns its output; plain numbers become constants of the type of the value that
they meet. A graph within a loop reads the values of the graphs around it by their names.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # the first with antialiased Resize
IR_VERSION = 9
DOMAIN, SAMPLE_LEVELS = "panoptic_detr", "SampleLevels"  # what ONNX has no operator for, in graphs for OpenVINO only
Number: TypeAlias = bool | int | float
TYPES: dict[np.dtype, int] = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}
KIND_OF_OUTPUT = {
    "Shape": np.int64,
    "NonZero": np.int64,
    "ArgMax": np.int64,
    "ArgMin": np.int64,
    "Size": np.int64,
} | dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or"), np.bool_)


@dataclass(frozen=True)
class Value:
    """A tensor: its name, and the NumPy type of its elements. Operators add nodes to the graph that is being written."""

    name: str
    kind: type

    @property
    def graph(self) -> "Graph":
        """The graph that is being written: the innermost one."""
        return Graph.open[-1]

    def __add__(self, other: "Value | Number") -> "Value":
        return self.graph.Add(self, other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self.graph.Sub(self, other)

    def __rsub__(self, other: Number) -> "Value":
        return self.graph.Sub(self.graph.constant(other, self.kind), self)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self.graph.Mul(self, other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self.graph.Div(self, other)

    def __and__(self, other: "Value") -> "Value":
        return self.graph.And(self, other)

    def __or__(self, other: "Value") -> "Value":
        return self.graph.Or(self, other)

    def __invert__(self) -> "Value":
        return self.graph.Not(self)

    def __lt__(self, other: "Value | Number") -> "Value":
        return self.graph.Less(self, other)

    def __gt__(self, other: "Value | Number") -> "Value":
        return self.graph.Greater(self, other)

    def __ge__(self, other: "Value | Number") -> "Value":
        return self.graph.GreaterOrEqual(self, other)

    def equals(self, other: "Value | Number") -> "Value":
        """Element by element."""
        return self.graph.Equal(self, other)

    def to(self, kind: type) -> "Value":
        """The same values of another type."""
        return self.graph.node("Cast", [self], kind=kind, to=TYPES[np.dtype(kind)])

    def size(self, axis: int) -> "Value":
        """The length of an axis, a number."""
        return self.graph.Gather(self.graph.Shape(self), axis)

    def reshape(self, *sizes: "Value | int") -> "Value":
        """The same values in another shape; -1 once for what is left."""
        return self.graph.Reshape(self, self.graph.list_of(*sizes), allowzero=1 if 0 in sizes else 0)

    def unsqueeze(self, *axes: int) -> "Value":
        """With new axes of length 1."""
        return self.graph.Unsqueeze(self, self.graph.constant(list(axes), np.int64))

    def squeeze(self, *axes: int) -> "Value":
        """Without these axes of length 1."""
        return self.graph.Squeeze(self, self.graph.constant(list(axes), np.int64))

    def cut(self, start: "Value | int", stop: "Value | int", axis: int = 0) -> "Value":
        """From `start` to `stop` along an axis."""
        graph = self.graph
        return graph.Slice(self, graph.list_of(start), graph.list_of(stop), graph.constant([axis], np.int64))

    def sum(self, *axes: int) -> "Value":
        """Sum over axes, which are gone; over all without."""
        where = [self.graph.constant(list(axes), np.int64)] if axes else []
        return self.graph.ReduceSum(self, *where, keepdims=0)

    def any(self) -> "Value":
        """Whether any element is true, a number."""
        return self.to(np.int64).sum() > 0


class Graph:
    """A graph that grows; whoever makes the outermost one puts it into a `with` block.

    Args:
        outer: the graph around it, for the body of a loop.
        for_openvino: the runtime that it is for, which has no double precision, and no antialiasing that is right and fast.
    """

    open: ClassVar[list["Graph"]] = []  # the innermost last

    def __init__(self, outer: "Graph | None" = None, *, for_openvino: bool = False) -> None:
        self.outer = outer
        self.for_openvino = for_openvino
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.counter: itertools.count[int] = outer.counter if outer else itertools.count()
        self.constants: dict[tuple[object, ...], Value] = outer.constants if outer else {}

    def __enter__(self) -> "Graph":
        Graph.open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        Graph.open.pop()

    def __getattr__(self, op: str) -> Callable[..., Value]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self.node(op, inputs, **attributes)

    def node(
        self, op: str, inputs: Sequence[Value | Number | None], *, kind: type | None = None, **attributes: object
    ) -> Value:
        """Add a node of one output.

        Args:
            op: of ONNX.
            inputs: None for one that is left out.
            kind: of the output; by default that of the first input, or what the operator always gives.
            **attributes: of the node.
        """
        like = next((value.kind for value in inputs if isinstance(value, Value)), np.float32)
        if op in ("Gather", "GatherElements", "GatherND", "Where"):  # indices are always int64; a condition says no type
            values = inputs[1:] if op == "Where" else inputs[1:2]
            fixed = next((v.kind for v in values if isinstance(v, Value)), like)
            like = fixed if op == "Where" else np.int64
        names = [self._name(value, like) for value in inputs]
        first = next(value for value in (inputs[1:] if op == "Where" else inputs) if isinstance(value, Value))
        out = self.fresh(op)
        self.nodes.append(helper.make_node(op, names, [out], **attributes))  # type: ignore[arg-type]
        given: type = KIND_OF_OUTPUT.get(op, first.kind)
        return Value(out, kind or given)

    def fresh(self, word: str) -> str:
        """A name that no other value has."""
        return f"{word}_{next(self.counter)}"

    def constant(self, value: object, kind: type) -> Value:
        """Numbers that never change; the outermost graph holds them."""
        if self.outer is not None:
            return self.outer.constant(value, kind)
        array: np.ndarray = np.array(value, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            name = self.fresh("constant")
            self.initializers.append(numpy_helper.from_array(array, name))
            self.constants[key] = Value(name, kind)
        return self.constants[key]

    def list_of(self, *numbers: Value | int) -> Value:
        """Numbers as one int64 vector."""
        if all(isinstance(number, int) for number in numbers):
            return self.constant(list(numbers), np.int64)
        parts = [n.reshape(1) if isinstance(n, Value) else self.constant([n], np.int64) for n in numbers]
        return self.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]

    def full(self, value: Number, kind: type, *sizes: Value | int) -> Value:
        """A tensor of one value."""
        tensor = numpy_helper.from_array(np.array([value], kind))
        return self.node("ConstantOfShape", [self.list_of(*sizes)], kind=kind, value=tensor)

    def arange(self, count: Value) -> Value:
        """0, 1, ... (count,) int64."""
        return self.Range(self.constant(0, np.int64), count, self.constant(1, np.int64))

    def count(self, places: Value, weights: Value, length: Value) -> Value:
        """Sum the (N,) int64 weights of each of `length` places (N,)."""
        return self.ScatterElements(self.full(0, np.int64, length), places, weights, axis=0, reduction="add")

    def input(self, name: str, kind: type, shape: Sequence[str | int]) -> Value:
        """An input."""
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[np.dtype(kind)], shape))
        return Value(name, kind)

    def loop(
        self,
        body: "Callable[[Graph, Value, list[Value]], tuple[Value | None, list[Value], list[Value]]]",
        carried: Sequence[Value],
        ranks: Sequence[int],
        *,
        times: Value | None = None,
        go_on: Value | None = None,
    ) -> list[Value]:
        """Repeat.

        Args:
            body: (graph, number of the round, carried values) to (whether to go on, carried values, values to stack).
            carried: at the start.
            ranks: of these, how many axes each has.
            times: how often at most.
            go_on: whether to start at all.

        Returns:
            The carried values at the end, then the stacked ones.
        """
        inner = Graph(self, for_openvino=self.for_openvino)
        number = inner.input(inner.fresh("round"), np.int64, [])
        condition = inner.input(inner.fresh("go_on"), np.bool_, [])
        states = [Value(inner.fresh("state"), value.kind) for value in carried]
        for state, rank in zip(states, ranks, strict=True):
            axes = [f"{state.name}_{axis}" for axis in range(rank)]
            inner.inputs.append(helper.make_tensor_value_info(state.name, TYPES[np.dtype(state.kind)], axes))
        with inner:
            further, after, stacked = body(inner, number, states)
            outputs = [inner.Identity(value) for value in (condition if further is None else further, *after, *stacked)]
        proto = inner.proto("body", {value.name: (value, None) for value in outputs})
        names = [self.fresh("loop") for _ in outputs[1:]]
        start = [self._name(value, np.int64) for value in (times, go_on, *carried)]
        self.nodes.append(helper.make_node("Loop", start, names, body=proto))
        return [Value(name, value.kind) for name, value in zip(names, outputs[1:], strict=True)]

    def proto(self, name: str, outputs: Mapping[str, tuple[Value, Sequence[str | int] | None]]) -> onnx.GraphProto:
        """The finished graph; outputs by the name that each value has already, with its shape."""
        infos = [helper.make_tensor_value_info(n, TYPES[np.dtype(v.kind)], s) for n, (v, s) in outputs.items()]
        return helper.make_graph(self.nodes, name, self.inputs, infos, self.initializers)

    def splice(self, inner: onnx.GraphProto, inputs: Mapping[str, Value], *, outermost: bool = True) -> list[Value]:
        """Copy the nodes of another graph to the end of this one.

        Args:
            inner: whose values get new names.
            inputs: what its inputs are here.
            outermost: put its constants into the outermost graph.

        Returns:
            Its outputs.
        """
        prefix = self.fresh("part") + "/"
        names = {name: value.name for name, value in inputs.items()}
        home: Graph = self
        while outermost and home.outer is not None:
            home = home.outer
        for tensor in inner.initializer:
            copied = TensorProto()
            copied.CopyFrom(tensor)
            copied.name = names[tensor.name] = prefix + tensor.name
            home.initializers.append(copied)
        for node in inner.node:
            copied_node = onnx.NodeProto()
            copied_node.CopyFrom(node)
            for part in (copied_node.input, copied_node.output):
                part[:] = [names.get(name, prefix + name) if name else "" for name in part]
            copied_node.name = prefix + node.name
            self.nodes.append(copied_node)
        kinds: dict[int, type] = {number: kind.type for kind, number in TYPES.items()}
        return [Value(names.get(out.name, prefix + out.name), kinds[out.type.tensor_type.elem_type]) for out in inner.output]

    def _name(self, value: Value | Number | None, like: type) -> str:
        if value is None:
            return ""
        return (value if isinstance(value, Value) else self.constant(value, like)).name


def as_model(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    """A graph as a model of its own."""
    domains = {"": OPSET} | {node.domain: 1 for node in graph.node if node.domain}
    opsets = [helper.make_opsetid(name, version) for name, version in domains.items()]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version, model.producer_name = IR_VERSION, "panoptic_detr"
    return model

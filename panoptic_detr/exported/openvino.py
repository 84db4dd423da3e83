"""An ONNX graph as the two files of OpenVINO."""

import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import openvino
from openvino.frontend import FrontEndManager

from panoptic_detr.exported.engines import NOTES, Content
from panoptic_detr.exported.sampling import extension


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

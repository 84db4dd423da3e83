"""The runtimes of exported files: each opens one kind of file, says what is in it, and runs it on NumPy arrays."""

import functools
import io
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from panoptic_detr.errors import InputError
from panoptic_detr.files import check_path

if TYPE_CHECKING:
    import openvino

NOTES = "panoptic_detr"  # the entry of a file's metadata
Content = Mapping[str, bytes]  # what belongs into the files of an export, by their endings
OPENVINO_DEVICES = {"auto": "CPU", "cpu": "CPU", "gpu": "GPU", "npu": "NPU"}


class Engine(ABC):
    """A file that is ready to run.

    Attributes:
        kind: of file, for messages.
        device: where it runs.
        notes: what the file says about itself, as JSON; None if nothing.
        inputs: names that can be given.
        outputs: names that can be asked for.
    """

    kind: str
    device: str
    notes: str | None
    inputs: frozenset[str]
    outputs: frozenset[str]

    @abstractmethod
    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for the inputs that are given."""


class OnnxFile(Engine):
    """An ONNX file in onnxruntime (`open_engine` says what the arguments are)."""

    kind = "ONNX"

    def __init__(self, path: Path, device: str, threads: int, content: Content | None, precision: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path}: exported files need onnxruntime: pip install 'panoptic-detr[export]'") from None
        providers, self.device = providers_of(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(
                content[".onnx"] if content else str(path), options, providers=providers
            )
        except Exception as error:  # the library has a dozen kinds, none with a common parent
            raise cannot_open(path, self.kind, error) from None
        self.notes = self.session.get_modelmeta().custom_metadata_map.get(NOTES)
        ports = (*self.session.get_inputs(), *self.session.get_overridable_initializers())
        self.inputs = frozenset(port.name for port in ports)
        self.outputs = frozenset(port.name for port in self.session.get_outputs())

    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Engine`."""
        with memory_errors():
            found: list[np.ndarray] = self.session.run(list(names), dict(given))
        return found


OPENVINO_CACHE = "PANOPTIC_DETR_OPENVINO_CACHE"  # a folder that keeps what OpenVINO compiled, if somebody names one


class OpenVinoFile(Engine):
    """A file of OpenVINO; all of its inputs must be given."""

    kind = "OpenVINO"

    def __init__(self, path: Path, device: str, threads: int, content: Content | None, precision: str) -> None:
        try:
            core = openvino_core()
        except ImportError:
            raise InputError(f"{path}: such files need openvino: pip install 'panoptic-detr[openvino]'") from None
        if precision not in ("fp32", "bf16"):
            raise InputError(f"{path}: files of OpenVINO compute in fp32 or bf16, not in {precision!r}")
        place, self.device = openvino_device(device, core.available_devices)
        weights = path.with_suffix(".bin")
        if content is None and not weights.is_file():
            raise InputError(f"{path} has no weights: {weights.name} must lie beside it; export the model again")
        # Where the processor has it, OpenVINO computes in bfloat16 unless told otherwise.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads and place == "CPU" else {}
        if content is None and (cache := os.environ.get(OPENVINO_CACHE)):
            settings["CACHE_DIR"] = cache
        try:
            read = core.read_model(content[".xml"], content[".bin"]) if content else core.read_model(path)
        except Exception as error:  # RuntimeError and what its bindings raise
            raise cannot_open(path, self.kind, error) from None
        if samples_levels(read):  # whose places between cells bfloat16 would round
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self.compiled = core.compile_model(read, place, settings)
        except Exception as error:
            hint = settings["INFERENCE_PRECISION_HINT"]
            raise InputError(f"{path} cannot run on {place} in {hint} ({last_line(error)}); give device cpu") from None
        self.notes = read.get_rt_info(NOTES).astype(str) if read.has_rt_info(NOTES) else None
        self.inputs, self.outputs = (
            frozenset(name for port in ports for name in port.get_names())
            for ports in (self.compiled.inputs, self.compiled.outputs)
        )
        self._turn = Lock()  # one request at a time

    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Engine`."""
        with self._turn, memory_errors():
            found = self.compiled({name: np.require(value, requirements="W") for name, value in given.items()})
            return [found[name] for name in names]  # which are copies, since OpenVINO is not told to share them


class TorchFile(Engine):
    """A program of `torch.export`, on the CPU."""

    kind = "torch.export"

    def __init__(self, path: Path, device: str, threads: int, content: Content | None, precision: str) -> None:
        try:
            import torch
        except ImportError:
            raise InputError(f"{path}: such files need PyTorch; export to .onnx for places without") from None
        if device.strip().lower() not in ("", "auto", "cpu"):
            raise InputError(f"{path} runs on the CPU only, not on {device!r}; export to .onnx, or load the checkpoint")
        self.device, extra = "cpu", {NOTES: ""}
        for name in ("torch._export.serde.serialize", "torch.export"):  # sizes that are not used; tracebacks of damaged files
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            program = torch.export.load(io.BytesIO(content[".pt2"]) if content else str(path), extra_files=extra)
            self._module, signature = program.module(), program.call_spec
        except Exception as error:  # of zip files, JSON, pickle and torch
            raise cannot_open(path, self.kind, error) from None
        self.notes = extra[NOTES] or None
        taken = set(signature.in_spec.child(1).context if signature.in_spec is not None else ())
        self._any_size = "canvas" in taken
        self.inputs = frozenset(taken - {"canvas"} | ({"short_side", "long_side"} if self._any_size else set()))
        self.outputs = frozenset(signature.out_spec.context or () if signature.out_spec is not None else ())

    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Engine`; the size at which the network sees pictures is worked out here."""
        import torch

        from panoptic_detr.data.transforms import target_size

        values = {name: torch.as_tensor(value) for name, value in given.items() if not name.endswith("_side")}
        if self._any_size:
            size = (given["image"].shape[1], given["image"].shape[2])
            short, long = (int(given[f"{which}_side"]) for which in ("short", "long"))
            values["canvas"] = torch.zeros(target_size(size, short, long) if short else size, dtype=torch.uint8)
        with torch.no_grad():
            found = self._module(**values)
        return [found[name].numpy() for name in names]


KINDS: dict[str, type[OnnxFile] | type[OpenVinoFile] | type[TorchFile]] = {
    ".onnx": OnnxFile,
    ".xml": OpenVinoFile,
    ".pt2": TorchFile,
}


def open_engine(
    path: Path, device: str = "auto", *, threads: int = 0, content: Content | None = None, precision: str = "fp32"
) -> Engine:
    """Open an exported file.

    Args:
        path: the file; its ending says which runtime it needs.
        device: "auto", "cpu", or what the runtime has besides.
        threads: as many as there are cores for 0.
        content: of the file, where it is not written yet.
        precision: "bf16" lets OpenVINO compute in bfloat16.

    Raises:
        InputError: no such file, a file that is damaged or of another kind, no such device here, or a runtime that is not
            installed.
    """
    check_path(path)
    if content is None and not os.path.isfile(path):
        raise InputError(f"there is no exported file {str(path)!r}; `panoptic-detr export MODEL {path.name}` writes one")
    return KINDS[path.suffix.lower()](path, device, threads, content, precision)


@contextmanager
def memory_errors() -> Iterator[None]:
    """What a runtime says of memory that it cannot have, as Python's error for that, which all callers know."""
    try:
        yield
    except Exception as error:  # each library has kinds of its own
        if "ailed to allocate" in str(error):
            raise MemoryError(last_line(error)) from None
        raise


def cannot_open(path: Path, kind: str, error: Exception) -> InputError:
    """The error of a file that its runtime refuses."""
    return InputError(
        f"{path} cannot be opened as a file of {kind} ({last_line(error)}): it is damaged, or none; export the model again"
    )


def last_line(error: Exception) -> str:
    """What an error of a runtime comes down to."""
    line = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return line.strip()[:200]


_CORE_LOCK = Lock()


def openvino_core() -> "openvino.Core":
    """OpenVINO, once in a process and to its end.

    Its CPU plugin gives the process another stack for signals. Of several, an earlier one that ends leaves the stack of
    another in place that is gone, and the next signal that Python handles, such as Ctrl-C, would be a segmentation fault.
    """
    with _CORE_LOCK:  # two threads would make two
        return _only_core()


@functools.cache
def _only_core() -> "openvino.Core":
    import openvino

    return openvino.Core()


def samples_levels(model: "openvino.Model") -> bool:
    """Whether a model holds deformable attention as `sampling` writes it."""
    loops = (node.get_function() for node in model.get_ops() if node.get_type_name() == "Loop")
    return any(node.get_type_name() == "EmbeddingBagPackedSum" for body in loops for node in body.get_ops())


def openvino_device(device: str, there: Sequence[str]) -> tuple[str, str]:
    """OpenVINO's name of a device, and ours."""
    name = device.strip().lower() or "auto"
    place = OPENVINO_DEVICES.get(name.partition(".")[0])
    if place is None:
        raise InputError(f"there is no device {device!r} for OpenVINO; give auto, cpu, gpu, gpu.1 and so on, or npu")
    place = name.upper() if "." in name else place
    if not any(one == place or one.startswith(f"{place}.") for one in there):
        raise InputError(f"device {device!r} is not available to OpenVINO here; it has {', '.join(there).lower()}")
    return place, place.lower()


def providers_of(device: str, there: Sequence[str]) -> tuple[list[Any], str]:
    """Onnxruntime's providers for a device of ours, and the device's name."""
    wanted = device.strip().lower() or "auto"
    cuda = "CUDAExecutionProvider" in there
    if wanted == "cpu" or (wanted == "auto" and not cuda):
        return ["CPUExecutionProvider"], "cpu"
    kind, _, index = wanted.replace("gpu", "cuda").partition(":")
    if kind not in ("cuda", "auto") or (index and not index.isdecimal()):
        raise InputError(f"there is no device {device!r} for exported files; give auto, cpu, cuda, or cuda:1 and so on")
    if not cuda:
        raise InputError(f"device {device!r} is not available to onnxruntime here; pip install onnxruntime-gpu, or use 'cpu'")
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"], f"cuda:{index or 0}"

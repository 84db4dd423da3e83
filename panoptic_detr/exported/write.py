"""Exporting: a model of any source becomes one file, is run on pictures beside the model, and is kept only if they agree."""

import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from panoptic_detr.config.inference import LARGEST_SIDE
from panoptic_detr.config.types import fits_type
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.errors import DataError, InputError
from panoptic_detr.exported.engines import NOTES, Content
from panoptic_detr.exported.parity import (
    Comparison,
    Pair,
    Quality,
    Shown,
    default_pictures,
    least_equal,
    open_split,
    scores_of,
)
from panoptic_detr.exported.runtime import FORMAT, SETTINGS
from panoptic_detr.files import check_path, make_folder, write_whole
from panoptic_detr.images import Picture, as_rgb, check_is_picture
from panoptic_detr.inference import PictureFile, Predictor, find_pictures
from panoptic_detr.models import tracing
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.weights import OpenedModel, open_model
from panoptic_detr.zoo import spec_of

if TYPE_CHECKING:
    from panoptic_detr.exported.assemble import Networks
    from panoptic_detr.exported.program import Program

FilePrecision = Literal["fp32", "fp16", "int8"]
FileFormat = Literal["onnx", "openvino", "pt2"]
TYPES = {np.float32: torch.float32, np.int64: torch.int64, np.bool_: torch.bool}
CALIBRATED = 64  # pictures at most
LEAST_EQUAL = 0.999  # share of equal pixels, in fp32


class Kind(NamedTuple):
    """A kind of file: its name, the extra that it needs, and what is in that."""

    name: FileFormat
    extra: str = ""
    packages: tuple[str, ...] = ()


KINDS = {
    ".onnx": Kind("onnx", "export", ("onnx", "onnxruntime")),
    ".xml": Kind("openvino", "openvino", ("onnx", "openvino")),
    ".pt2": Kind("pt2"),
}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the model.

    Attributes:
        path: the file.
        megabytes: its size, with that of the weights beside it.
        precision: of its weights.
        comparisons: one for each picture.
        quality: PQ of model and file, if a data set was given.
    """

    path: Path
    megabytes: float
    precision: FilePrecision
    comparisons: tuple[Comparison, ...]
    quality: Quality | None = None

    @property
    def equal_pixels(self) -> float:
        """Share of equal pixels in the worst picture."""
        return least_equal(self.comparisons)


def export(
    source: "str | Path | Predictor",
    path: str | Path,
    *,
    format: FileFormat | None = None,
    size: tuple[int, int] | None = None,
    precision: FilePrecision = "fp32",
    calibrate: str | Path | None = None,
    raw: bool = False,
    check: Sequence[Picture] = (),
    check_data: tuple[str | Path, str] | None = None,
    most_lost: float | None = None,
) -> ExportReport:
    """Write a model as one file that does all from uint8 pixels to the panoptic map.

    Args:
        source: a checkpoint, a model name whose authors publish weights, or a predictor.
        path: the file; its ending names the format: `.onnx`, `.xml` (OpenVINO, weights beside it in a `.bin`),
            or `.pt2` (`torch.export`).
        format: for programs that name it ("onnx", "openvino", "pt2"); it must agree with the ending.
        size: (height, width) that every picture is resized to; None keeps the aspect, as the model's settings say.
        precision: "fp32"; "fp16" and "int8" keep the weights in half and in a quarter of the bytes, and compute in float32.
        calibrate: for int8, a folder of pictures such as the file will see: it computes in 8 bits, with scales by what the
            values in the networks are on them (on 64, evenly spread, of more).
        raw: logits, boxes and masks of all queries instead of maps; the only way for a detector without mask head.
        check: pictures that file and model are compared on, besides three drawn ones.
        check_data: root and split of a data set in COCO's layout, on which the PQ of both is measured.
        most_lost: points of PQ (of 100) that the file may have less than the model there.

    Returns:
        What was written, and the comparison.

    Raises:
        InputError: a source, path, size or precision that does not fit; what it needs is not installed; fewer than 99.9%
            equal pixels in fp32, or more PQ lost than allowed. Nothing is left behind then.
        DataError: a data set that is not there or has a defect.
    """
    check_path(path)
    path = Path(path)
    check_target(path, size, precision)
    check_kind(path, format, precision, raw=raw)
    check_pictures(check)
    shown = pictures_of(calibrate, path, precision)
    dataset = open_split(check_data, most_lost, raw=raw)
    opened = opened_source(source)
    if not raw and not opened.panoptic:
        raise InputError(
            "the model is a detector without a mask head, which makes no maps; export its boxes with --raw (raw=True)"
        )
    content = make_content(opened, source, path.suffix.lower(), size=size, precision=precision, raw=raw, calibrate=shown)
    make_folder(path.parent)
    pair = Pair(opened, path, content, raw=raw)
    drawn = default_pictures(min(size) if size else opened.settings.short_side)
    found = tuple(pair.compare(picture) for picture in [*drawn, *check])
    if precision == "fp32":
        check_alike(path, found)
    quality = None if dataset is None else measure_quality(opened, pair, dataset, most_lost)
    write_files(path, content)
    return ExportReport(path, sum(map(len, content.values())) / 2**20, precision, found, quality)


def check_alike(path: Path, found: Sequence[Comparison]) -> None:
    """Raise `InputError` where fewer pixels than wanted are those of the model."""
    worst = min(found, key=lambda one: one.equal_pixels)
    if worst.equal_pixels < LEAST_EQUAL:
        raise InputError(
            f"{path} is not written: on the picture {worst.name} only {100 * worst.equal_pixels:.2f}% of the pixels are those "
            f"of the model, and {100 * LEAST_EQUAL:g}% are wanted (largest difference of logits {worst.logits:.2g}, masks "
            f"{worst.masks:.2g})"
        )


def measure_quality(opened: OpenedModel, pair: Pair, dataset: CocoPanoptic, most_lost: float | None) -> Quality:
    """Scores of model and file on a data set; `InputError` where the file loses more points of PQ than allowed."""
    model = Predictor(opened.model, opened.categories, settings=opened.settings)
    quality = Quality(scores_of(model, dataset), scores_of(pair.exported, dataset))
    if most_lost is not None and quality.points_lost > most_lost:
        raise InputError(
            f"{pair.path} is not written: it loses {quality.points_lost:.2f} points of PQ on {quality.file.images} images, and "
            f"at most {most_lost:g} are allowed; export with more precision, or allow more"
        )
    return quality


def write_files(path: Path, content: Content) -> None:
    """Write an export; an older one of several files is gone before, so that files of two exports never lie together."""
    if len(content) > 1:
        path.unlink(missing_ok=True)
    for ending in sorted(content, key=lambda ending: ending == path.suffix.lower()):
        write_whole(path if ending == path.suffix.lower() else path.with_suffix(ending), content[ending])


def check_target(path: Path, size: tuple[int, int] | None, precision: str) -> None:
    """Raise `InputError` unless such a file can be written here."""
    ending = path.suffix.lower()
    if ending not in KINDS:
        raise InputError(f"{path}: exported files end in {' or '.join(KINDS)}, not in {path.suffix or 'nothing'}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file")
    if ending == ".xml" and path.with_suffix(".bin").exists() and not path.exists():
        raise InputError(f"{path.with_suffix('.bin')} is there already, and would be overwritten; choose another name")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise InputError(f"{path} cannot be written: {nearest} is no folder that may be written to; choose another place")
    if precision not in get_args(FilePrecision):
        raise InputError(f"precision must be one of {', '.join(get_args(FilePrecision))}, but got {precision!r}")
    pair = fits_type(size, Sequence[int]) and len(size or ()) == 2
    if size is not None and not (pair and all(32 <= side <= LARGEST_SIDE for side in size)):
        raise InputError(f"size must be (height, width) of 32 to {LARGEST_SIDE} pixels each, but got {size!r}")
    for name in KINDS[ending].packages:
        try:
            import_module(name)
        except ImportError:
            extra = KINDS[ending].extra
            raise InputError(f"exporting to {ending} needs {name}: pip install 'panoptic-detr[{extra}]'") from None


def check_kind(path: Path, format: FileFormat | None, precision: str, *, raw: bool) -> None:
    """Raise `InputError` where a file's ending does not go with what it is to be."""
    kind = KINDS[path.suffix.lower()].name
    if format not in (None, kind):
        raise InputError(f"{path} ends as a file of {kind}, but format is {format!r}; leave format out")
    if kind == "pt2" and (raw or precision != "fp32"):
        raise InputError(f"{path}: .pt2 files hold float32 and give maps; --raw, fp16 and int8 are for .onnx and .xml")


def check_pictures(pictures: Sequence[Picture]) -> None:
    """Raise `InputError` unless all can be read, before the model is converted."""
    if isinstance(pictures, str) or not isinstance(pictures, Sequence):
        raise InputError(f"check must be a list of pictures, but got {pictures!r:.100}; put one picture into a list")
    for picture in pictures:
        check_is_picture(picture)
        as_rgb(picture)


def pictures_of(folder: str | Path | None, path: Path, precision: str) -> list[PictureFile]:
    """The pictures of a folder to calibrate on, evenly spread where it has more than enough.

    Raises:
        InputError: no folder, one without pictures, a file that is no picture, or a precision that needs none.
    """
    if folder is None:
        return []
    check_path(folder)
    if precision != "int8":
        raise InputError(
            f"{folder} shows how large values get in 8 bits; --calibrate goes with --precision int8, not {precision}"
        )
    try:
        import_module("onnxruntime")  # which runs the pictures, whatever runtime the file is for
    except ImportError:
        raise InputError(f"{path}: --calibrate needs onnxruntime: pip install 'panoptic-detr[export]'") from None
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder; --calibrate takes one of pictures such as the file will see")
    try:
        found = find_pictures([folder])
    except DataError:
        raise InputError(
            f"{folder}: no pictures lie in this folder itself; --calibrate takes the one that holds them"
        ) from None
    found = [found[len(found) * index // CALIBRATED] for index in range(CALIBRATED)] if len(found) > CALIBRATED else found
    for file in found:
        file.read()  # whatever is wrong with one is said before a model is converted
    return found


def opened_source(source: "str | Path | Predictor") -> OpenedModel:
    """Model, classes and settings of a source."""
    if isinstance(source, Predictor):
        model = source.model if source.device.type == "cpu" else deepcopy(source.model).to("cpu")  # theirs stays where it is
        return OpenedModel(model, source.categories, source.settings)
    return open_model(source)


def make_content(
    opened: OpenedModel,
    source: "str | Path | Predictor",
    ending: str,
    *,
    size: tuple[int, int] | None,
    precision: FilePrecision,
    raw: bool,
    calibrate: Sequence[PictureFile] = (),
) -> Content:
    """What is written, by the endings of the files."""
    no_object = bool(getattr(detector_of(opened.model), "no_object", False))
    notes = notes_of(opened, source, KINDS[ending].packages, no_object=no_object, size=size, precision=precision, raw=raw)
    fast = optimize_for_inference(opened.model, channels_last=False)
    if ending == ".pt2":
        from panoptic_detr.exported.program import Program

        settings = opened.settings
        statistics = settings.image_mean or IMAGENET_MEAN, settings.image_std or IMAGENET_STD
        return program_file(Program(fast, opened.categories, no_object, *statistics, size), notes)
    from panoptic_detr.exported.assemble import assemble
    from panoptic_detr.exported.precision import smaller_weights

    model = assemble(
        traced(fast, Shown(calibrate, opened.settings, size), no_object=no_object, ending=ending),
        opened.categories,
        opened.settings,
        no_object=no_object,
        size=size,
        raw=raw,
        metadata={NOTES: json.dumps(notes)},
        for_openvino=ending == ".xml",
    )
    if precision != "fp32":
        smaller_weights(model.graph, precision)
    try:
        if ending == ".onnx":
            return {ending: model.SerializeToString()}
        from panoptic_detr.exported.openvino import openvino_files

        return openvino_files(model, notes)
    except ValueError:  # protobuf's limit
        raise InputError(
            "the model has more than 2 GB of weights, which one ONNX graph cannot hold; use precision fp16 or int8"
        ) from None


def program_file(program: "Program", notes: Mapping[str, object]) -> Content:
    """The `.pt2` of a program, for any number and size of pictures; it says `notes` about itself."""
    given: dict[str, Tensor] = {"image": torch.zeros((2, 150, 170, 3), dtype=torch.uint8)}
    given |= {name: torch.zeros((), dtype=TYPES[kind]) for name, kind in SETTINGS.items() if not name.endswith("_side")}
    free = torch.export.Dim.AUTO
    shapes: dict[str, dict[int, object] | None] = {**dict.fromkeys(given), "image": dict.fromkeys((0, 1, 2), free)}
    if program.size is None:
        given["canvas"], shapes["canvas"] = torch.zeros((160, 192), dtype=torch.uint8), {0: free, 1: free}
    with torch.no_grad(), tracing.unpadded(), tracing.last_layer():
        exported = torch.export.export(program.eval(), (), given, dynamic_shapes=shapes, strict=False)
    stream = io.BytesIO()
    torch.export.save(exported, stream, extra_files={NOTES: json.dumps(notes)})
    return {".pt2": stream.getvalue()}


def traced(model: nn.Module, shown: Shown, *, no_object: bool, ending: str) -> "Networks":
    """The networks of a model for a kind of file; with products in 8 bits where pictures are shown to calibrate on."""
    from panoptic_detr.exported.assemble import Networks
    from panoptic_detr.exported.parts import trace_parts

    with tracing.whole_sampling(ending == ".xml"):
        networks = Networks(*trace_parts(model))
    if not shown.files:
        return networks
    from panoptic_detr.exported.calibrated import in_bytes

    return in_bytes(networks, shown, no_object=no_object, results=ending == ".onnx")


def notes_of(
    opened: OpenedModel,
    source: "str | Path | Predictor",
    packages: Sequence[str],
    *,
    no_object: bool,
    size: tuple[int, int] | None,
    precision: str,
    raw: bool,
) -> dict[str, object]:
    """What the file says about itself."""
    versions = {name: version(name) for name in ("torch", *packages)} | {"python": platform.python_version()}
    return {
        "format": FORMAT,
        "categories": opened.categories.to_dict(),
        "settings": opened.settings.to_dict(),
        "model": spec_of(opened.model).to_dict(),
        "no_object": no_object,
        "size": size,
        "precision": precision,
        "raw": raw,
        "source": "predictor" if isinstance(source, Predictor) else Path(source).name,
        "versions": versions | {"panoptic_detr": version("panoptic-detr")},
    }


def detector_of(model: nn.Module) -> nn.Module:
    """The detector within a panoptic model, or the detector itself."""
    detector = getattr(model, "detector", model)
    assert isinstance(detector, nn.Module)
    return detector

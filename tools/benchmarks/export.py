"""Measure exported files against the model that they are of: seconds of a picture, start, size, memory of a large picture.

Weights are random, and every query is sure to be some thing; of these model and files keep the surest dozen (`max_segments`),
as many as there are segments in a photograph.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import nn

from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.scenes import make_scene
from panoptic_detr.errors import InputError
from panoptic_detr.exported.runtime import ExportedPredictor
from panoptic_detr.exported.write import FilePrecision, make_content, opened_source, pictures_of, write_files
from panoptic_detr.files import make_folder
from panoptic_detr.images import save_picture
from panoptic_detr.inference import Predictor, load_model
from panoptic_detr.weights import Checkpoint, save_checkpoint
from panoptic_detr.zoo import build_model, spec_of
from tools.benchmarks.hub import SURE, timed
from tools.benchmarks.measure import Figures, check_variants, in_own_process, peak_memory

SHOWN = 2  # pictures to calibrate on: how many matters to the scales only
LARGEST_SCENE = 1024
MASKED = ("covered", "small", "merged", "suppressed")  # why queries with a mask are no segment


class Way(NamedTuple):
    """A way to run the model: a file and how it is opened; no file is the model itself, as a `Predictor` runs it."""

    file: str = ""
    precision: FilePrecision = "fp32"
    calibrated: bool = False
    opened: str = "fp32"


WAYS = {
    "model, fp32": Way(),
    "model, bf16": Way(opened="bf16"),
    ".onnx": Way("fp32.onnx"),
    ".xml": Way("fp32.xml"),
    ".xml, bf16": Way("fp32.xml", opened="bf16"),
    ".pt2": Way("fp32.pt2"),
    ".onnx, int8": Way("weights.onnx", "int8"),
    ".onnx, int8 calibrated": Way("int8.onnx", "int8", calibrated=True),
    ".xml, int8 calibrated": Way("int8.xml", "int8", calibrated=True),
}


def run(
    *,
    model: str = "detr_r50_panoptic",
    ways: tuple[str, ...] = tuple(WAYS),
    picture: tuple[int, int] = (480, 640),
    short_side: int = 800,
    large: tuple[int, int] | None = (4000, 6000),
    kept: int = 12,
    threads: int = 1,
    repeats: int = 3,
    rounds: int = 2,
    folder: Path | None = None,
) -> Figures:
    """Compare the files of a model with random weights with the model itself, each in processes of its own.

    Args:
        model: a panoptic model of the zoo.
        ways: names of those to compare; the first is what the others are compared with.
        picture: (height, width) of the picture.
        short_side: to which it is resized; 800 makes 800 x 1066 of 480 x 640.
        large: the same of the picture whose memory is measured; None for none.
        kept: queries that get a mask.
        threads: of every runtime.
        repeats: pictures of which the fastest counts; one before them does not.
        rounds: of all ways in turn, so that whatever else runs here slows all alike; the fastest counts.
        folder: where files are written and stay; a temporary one by default. Files that are there already are taken.

    Raises:
        InputError: files in the folder are of another model, or made for other pictures.

    Returns:
        `rows` with seconds of CPU for a picture, for load and first picture (without imports of torch) and for the export;
        megabytes of the file; MiB that the process grew by, with the usual and with the large picture; queries with a mask.
    """
    check_variants(ways, WAYS)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        if not is_of(place, {"model": model, "picture": picture, "short_side": short_side, "large": large, "kept": kept}):
            in_own_process(write_model, place=place, name=model, pictures=(picture, large), short_side=short_side, kept=kept)
        common = {"place": place, "threads": threads}
        rows: list[Figures] = [{"what": name, **in_own_process(write_file, name=name, **common)} for name in ways]
        for number in range(rounds):
            for row in rows:
                found = in_own_process(predict, name=row["what"], shown="picture.png", repeats=repeats, **common)
                row |= found if not number else {key: min(row[key], found[key]) for key in ("seconds", "start")}
        for row in rows if large is not None else ():
            row["large_mib"] = in_own_process(predict, name=row["what"], shown="large.png", repeats=0, **common)["mib"]
        return {"model": model, "picture": list(picture), "short_side": short_side, "threads": threads, "rows": rows}


def is_of(place: Path, arguments: Figures) -> bool:
    """Whether the files in a folder are of these arguments; an empty one takes note of them, and another's is left alone."""
    path, asked = place / "arguments.json", json.loads(json.dumps(arguments))
    if not path.exists():
        if any(make_folder(place).iterdir()):
            raise InputError(
                f"{place}: there are files in it that are not of this measurement; give another folder, or a new one"
            )
        path.write_text(json.dumps(asked))
        return False
    try:
        made = json.loads(path.read_text())
    except ValueError:
        made = "something else"
    if made != asked:
        raise InputError(f"{place}: these files were made with {made}, not with {asked}; give another folder")
    return (place / "model.pt").exists()


def write_model(place: Path, name: str, pictures: Sequence[tuple[int, int] | None], short_side: int, kept: int) -> None:
    """A checkpoint, the pictures, and some to calibrate on."""
    (place / "shown").mkdir(exist_ok=True)
    for file, size in zip(("picture", "large"), pictures, strict=True):
        if size is not None:
            draw_picture(place / f"{file}.png", 0, size)
    for index in range(SHOWN):
        draw_picture(place / "shown" / f"{index}.png", index, pictures[0] or (480, 640))
    torch.manual_seed(0)
    network = build_model(name, mask_scale_maps=True).eval()  # else random masks are all the same
    table = coco_categories(spec_of(network).num_labels)
    things = [label for label, category in table.by_label.items() if category.isthing]
    *_, head = (part for name, part in network.named_modules() if "class_embed" in name and isinstance(part, nn.Linear))
    with torch.no_grad():
        sure = head.bias[things] + SURE
        head.bias[things] = sure
    settings = InferenceSettings(threshold=0.0, max_segments=kept, short_side=short_side)
    save_checkpoint(place / "model.pt", Checkpoint(spec_of(network), network.state_dict(), table, settings.to_dict()))


def draw_picture(path: Path, index: int, size: tuple[int, int]) -> None:
    """A drawn scene of (height, width), repeated where that is larger than a scene."""
    side = min(max(size), LARGEST_SCENE)
    image = np.tile(make_scene(index, size=side).image, (-(-size[0] // side), -(-size[1] // side), 1))
    save_picture(path, np.ascontiguousarray(image[: size[0], : size[1]]))


def write_file(place: Path, name: str, threads: int) -> Figures:
    """The file of a way, unless it is there: its megabytes, and the seconds of CPU that the conversion took."""
    way = WAYS[name]
    path = place / (way.file or "model.pt")
    seconds = None
    if not path.exists():
        torch.set_num_threads(threads)
        start = time.process_time()
        shown = pictures_of(place / "shown", path, "int8") if way.calibrated else ()
        source, kind = place / "model.pt", path.suffix
        opened, precision = opened_source(source), way.precision
        content = make_content(opened, source, kind, size=None, precision=precision, raw=False, calibrate=shown)
        write_files(path, content)
        seconds = time.process_time() - start
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    return {"megabytes": sum(file.stat().st_size for file in files) / 2**20, "export_seconds": seconds}


def predict(place: Path, name: str, shown: str, threads: int, repeats: int) -> Figures:
    """Pictures by one way, in this process."""
    way = WAYS[name]
    torch.set_num_threads(threads)
    before, start = peak_memory(), time.process_time()
    predictor: Predictor | ExportedPredictor
    if way.file:
        predictor = ExportedPredictor(place / way.file, device="cpu", threads=threads, precision=way.opened)
    else:
        predictor = load_model(place / "model.pt", device="cpu", precision="bf16" if way.opened == "bf16" else "fp32")
    result = predictor(place / shown)
    first = time.process_time() - start
    found = {"start": first, "mib": peak_memory() - before}
    masks = len(result.segments) + sum(dropped.reason in MASKED for dropped in result.dropped)
    return found | {"masks": masks, "seconds": timed(lambda: predictor(place / shown), repeats)[1] if repeats else first}


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    title = f"{result['model']}, {result['picture'][1]} x {result['picture'][0]}, {result['threads']} thread(s)"
    names = ("", "s of CPU", "times faster", "load and first", "MB", "MiB", "MiB, large picture", "masks", "export, s")
    view = Table(*names, title=title)
    first = result["rows"][0]
    for row in result["rows"]:
        large, export = (row.get(name) for name in ("large_mib", "export_seconds"))
        cells = [f"{row['seconds']:.2f}", f"{first['seconds'] / row['seconds']:.2f}", f"{row['start']:.1f}"]
        cells += [f"{row['megabytes']:.0f}", f"{row['mib']:.0f}", f"{large:.0f}" if large else "", str(row["masks"])]
        view.add_row(row["what"], *cells, f"{export:.0f}" if export else "")
    return [view]

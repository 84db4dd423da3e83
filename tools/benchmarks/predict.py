"""Measure prediction of many small pictures: pictures per second by part, how long the model waits, memory over time.

Beside other programs only the CPU time can be trusted; the load of the machine stands beside the time by the clock.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.table import Table

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.scenes import make_scene, scene_categories
from panoptic_detr.images import encode_picture
from panoptic_detr.inference import PredictionFolder, Predictor, Share, find_pictures, load_model, predict_files
from panoptic_detr.zoo import build_model
from tools.benchmarks.measure import Figures, Stopwatch

DIFFERENT = 20  # pictures; more are copies of them
POINTS = 20  # of the curve of memory
TINY = {"backbone": "small", "hidden_dim": 32, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 6}


def run(
    *,
    checkpoint: Path | None = None,
    pictures: int = 200,
    size: int = 96,
    processes: Sequence[int] = (1, 2),
    overlays: bool = True,
    threads: int = 1,
) -> Figures:
    """Predict drawn scenes as `predict` does, by parts and as a whole.

    Args:
        checkpoint: of a model with a mask head; by default a tiny one with random weights.
        pictures: how many.
        size: their side in pixels.
        processes: numbers of processes that share the pictures.
        overlays: draw overlays, too.
        threads: of torch, in each process. Where there are more than free cores they wait for each other: on a busy machine of
            two cores a tiny model takes five times the time with two.

    Returns:
        Milliseconds of CPU time by part, and for each number of processes: pictures per second, milliseconds of CPU time of a
        picture, load of the machine, share of the time in which the model waited, seconds to join the results, and MiB of
        the first process over the pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pictures(place / "pictures", pictures, size)
        rows = [whole(checkpoint, place, count, overlays, threads) for count in processes]
        return {"pictures": pictures, "size": size, "parts": parts(checkpoint, place, overlays, threads), "rows": rows}


def write_pictures(folder: Path, count: int, size: int) -> None:
    """So many scenes as PNG, of which a few are different."""
    folder.mkdir()
    files = [encode_picture(make_scene(index, size=size).image) for index in range(min(count, DIFFERENT))]
    for index in range(count):
        (folder / f"{index:06d}.png").write_bytes(files[index % len(files)])


def model_of(checkpoint: Path | None, threads: int) -> Predictor:
    """A checkpoint's predictor, or a tiny one that sees something in every picture."""
    torch.set_num_threads(threads)
    if checkpoint is not None:
        return load_model(checkpoint, device="cpu")
    torch.manual_seed(0)
    table = scene_categories()
    model = build_model("detr_r50_panoptic", num_labels=table.num_labels, **TINY)
    model.state_dict()["detector.class_embed.bias"][-1] = -9.0  # never "no object"
    return Predictor(model, table, settings=InferenceSettings(threshold=0.1, min_area=1, short_side=None))


def parts(checkpoint: Path | None, place: Path, overlays: bool, threads: int) -> dict[str, float]:
    """Milliseconds of CPU time of one picture for each part, one after the other."""
    model, watch = model_of(checkpoint, threads), Stopwatch("cpu")
    files = find_pictures([place / "pictures"])[:50]
    with PredictionFolder(place / "parts", model.categories, overlays=overlays) as folder:
        model([files[0].read()])  # what is made once
        for file in files:
            with watch.lap():
                picture = watch.time("reading", file.read)
                (result,) = watch.time("model and merging", lambda pixels: model([pixels]), picture)
                watch.time("drawing and writing", folder.add, file, picture, result)
    return watch.mean()


def whole(checkpoint: Path | None, place: Path, processes: int, overlays: bool, threads: int) -> Figures:
    """All pictures by so many processes; the figures of the slowest, the memory of the first."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        shares = [(checkpoint, place, Share(rank, processes), overlays, threads) for rank in range(processes)]
        told = list(pool.map(one_share, *zip(*shares, strict=True)))
    done, seconds = sum(row["done"] for row in told), max(row["seconds"] for row in told)
    return {
        "processes": processes,
        "pictures_per_second": done / seconds,
        "cpu_ms": 1000 * sum(row["cpu_seconds"] for row in told) / done,
        "load": os.getloadavg()[0],
        "wait_share": max(row["wait_share"] for row in told),
        "joining": join(place / f"out{processes}", overlays),
        "memory_mib": told[0]["memory_mib"],
    }


def join(folder: Path, overlays: bool) -> float:
    """Join what the processes have written; returns the seconds."""
    before = time.perf_counter()
    with PredictionFolder(folder, scene_categories(), overlays=overlays) as results:
        results.finish()
    return time.perf_counter() - before


def meet(place: Path, share: Share, *, seconds: float = 600) -> None:
    """Wait until all processes are there, so that they work at the same time.

    Raises:
        TimeoutError: one is not ready in time, because it has ended, say.
    """
    latest = time.monotonic() + seconds
    (place / f"ready{share.processes}-{share.rank}").touch()
    while len(list(place.glob(f"ready{share.processes}-*"))) < share.processes:
        if time.monotonic() > latest:
            raise TimeoutError(f"after {seconds:g} s not all {share.processes} processes are ready; see what the others say")
        time.sleep(0.01)


def one_share(checkpoint: Path | None, place: Path, share: Share, overlays: bool, threads: int) -> Figures:
    """The pictures of one process, and its memory at some of them."""
    model = model_of(checkpoint, threads)
    memory: list[tuple[int, float]] = []
    files = share.of(find_pictures([place / "pictures"]))
    step = max(1, len(files) // POINTS)

    def watch(*_: object) -> None:
        watch_count[0] += 1
        if watch_count[0] % step == 0:
            memory.append((watch_count[0], resident()))

    watch_count = [0]
    out = place / f"out{share.processes}"
    with PredictionFolder(out, model.categories, overlays=overlays, part=share.part) as folder:
        model([files[0].read()])  # what is made once
        meet(place, share)
        before = time.process_time()
        outcome = predict_files(model, files, folder, watch=watch)
    return {
        "done": outcome.done,
        "seconds": outcome.seconds,
        "cpu_seconds": time.process_time() - before,
        "wait_share": outcome.wait_share,
        "memory_mib": memory,
    }


def resident() -> float:
    """Memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    count, size = result["pictures"], result["size"]
    view = Table("", "ms of CPU time", "per second", title=f"one after the other, {size} x {size}", title_justify="left")
    for name, value in result["parts"].items():
        view.add_row(name, f"{value:.1f}", f"{1000 / value:.1f}")
    names = ("processes", "pictures per second", "load", "ms of CPU time", "the model waits", "s to join", "MiB at first, last")
    both = Table(*names, title_justify="left")
    both.title = f"{count} pictures, reading, model and writing at the same time"
    for row in result["rows"]:
        memory = [mib for _, mib in row["memory_mib"]]
        cells = [f"{row['pictures_per_second']:.1f}", f"{row['load']:.1f}", f"{row['cpu_ms']:.1f}", f"{row['wait_share']:.1%}"]
        both.add_row(str(row["processes"]), *cells, f"{row['joining']:.1f}", f"{memory[0]:.0f}, {memory[-1]:.0f}")
    return [view, both]

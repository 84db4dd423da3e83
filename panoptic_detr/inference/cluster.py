"""Many pictures on a cluster that has Ray: one predictor per actor, all of which write into one output folder.

Every machine must see the pictures, the checkpoint and the output folder under the same paths (a shared file system). Takes Ray
Data (`pip install 'panoptic-detr[cluster]'`).
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import InputError
from panoptic_detr.inference.batch import Precision
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.flow import Outcome, PictureModel, predict_files
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.inference.rasters import read_by_windows
from panoptic_detr.inference.stream import Failure, PredictionFolder
from panoptic_detr.inference.tiles import Tiled

if TYPE_CHECKING:
    from ray import ObjectRef

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How each actor makes what predicts.

    Attributes:
        source: as of `load_model`.
        settings: of prediction; the source's own by default.
        precision: "fp32" or "bf16".
        tile: side and overlap of tiles, for large pictures; None predicts pictures whole.
    """

    source: str
    settings: InferenceSettings | None = None
    precision: Precision = "fp32"
    tile: tuple[int, int] | None = None

    def build(self, device: str, scratch: Path) -> PictureModel:
        """The model on a device; maps of large pictures lie in `scratch`."""
        predictor = load_model(self.source, device=device, precision=self.precision)
        predictor.settings = self.settings or predictor.settings
        return Tiled(predictor, tile=self.tile[0], overlap=self.tile[1], scratch=scratch) if self.tile else predictor


def ray_predict(
    recipe: Recipe,
    files: Sequence[PictureFile],
    folder: PredictionFolder,
    *,
    actors: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    at_once: int = 64,
    requests: Sequence[int] = (),
) -> Outcome:
    """Predict pictures with Ray Data; the files are those of one process.

    Args:
        recipe: what predicts.
        files: all pictures, as of `find_pictures`; shards are read where they lie.
        folder: where the results go, opened; its `finish` writes the JSON afterwards.
        actors: predictors that work at the same time.
        cpus: cores that each may use.
        gpus: GPUs for each, or a fraction of one; 0 predicts on CPUs.
        at_once: pictures that an actor is given at once; what it was given is done again if it is lost.
        requests: once something is in it the run ends.

    Raises:
        InputError: Ray Data is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("predicting on a cluster needs Ray Data; install it: pip install 'panoptic-detr[cluster]'") from None
    started = perf_counter()
    missing = [number for number, file in enumerate(files) if file not in folder]
    outcome, before = Outcome(), len(folder)
    if missing:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
        given = {
            "recipe": recipe,
            "device": "cuda" if gpus else "cpu",
            "files": ray.put([_absolute(file) for file in files]),
            "like": folder.likeness(),
        }
        numbers = ray.data.from_numpy(np.array(missing)).repartition(min(len(missing), 4 * actors))
        failed = numbers.map_batches(
            _Actor,
            batch_size=at_once,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
            fn_constructor_kwargs=given,
        )
        for row in failed.iter_rows():
            if row["number"] >= 0:
                outcome.failed.append(Failure.of(files[row["number"]], row["reason"]))
            if requests:
                break
    folder.read_others()
    outcome.done, outcome.seconds = len(folder) - before, perf_counter() - started
    return outcome


class _Actor:
    """One predictor, with lines of its own in the output folder."""

    def __init__(self, recipe: Recipe, device: str, files: "ObjectRef", like: Mapping[str, object]) -> None:
        import ray

        self.files: list[PictureFile] = ray.get(files)
        folder = Path(str(like["folder"]))
        self.model = recipe.build(device, folder)
        self.read = read_by_windows if recipe.tile else PictureFile.read
        self.folder = PredictionFolder(**like, categories=self.model.categories, part=uuid.uuid4().hex)  # type: ignore[arg-type]

    def __call__(self, batch: Batch) -> Batch:
        """Predict the pictures of some numbers; the numbers of those that failed, and why (-1 where all went well)."""
        files = [self.files[number] for number in batch["data"].tolist()]
        number_of = {_key(Failure.of(file, "")): number for file, number in zip(files, batch["data"].tolist(), strict=True)}
        failed = predict_files(self.model, files, self.folder, read=self.read).failed
        rows = [(number_of[_key(failure)], failure.reason) for failure in failed] or [(-1, "")]
        return {"number": np.array([row[0] for row in rows]), "reason": np.array([row[1] for row in rows])}


def _key(failure: Failure) -> tuple[str, int | str]:
    return failure.path, failure.image_id


def _absolute(file: PictureFile) -> PictureFile:
    """The same for a process that works in another folder."""
    extent = file.extent and replace(file.extent, shard=file.extent.shard.absolute())
    return replace(file, path=file.path.absolute(), extent=extent)

"""Many pictures on a cluster that has Ray: each actor predicts its share of the list, as a process of torchrun does.

Every machine must see the pictures, the model and the output folder under the same paths (a shared file system). Takes Ray
(`pip install 'panoptic-detr[cluster]'`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from types import ModuleType
from typing import Any

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import InputError
from panoptic_detr.inference.batch import Precision
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.flow import Outcome, PictureModel, predict_files
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.inference.rasters import read_by_windows
from panoptic_detr.inference.shares import Share
from panoptic_detr.inference.stream import PredictionFolder
from panoptic_detr.inference.tiles import Tiled

LOOK = 1.0  # seconds between looks at the actors


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

    def build(self, device: str, folder: PredictionFolder) -> PictureModel:
        """The model on a device; maps of large pictures lie in the output folder."""
        predictor = load_model(self.source, device=device, precision=self.precision)
        predictor.settings = self.settings or predictor.settings
        return Tiled(predictor, tile=self.tile[0], overlap=self.tile[1], scratch=folder.folder) if self.tile else predictor


def ray_predict(
    recipe: Recipe,
    files: Sequence[PictureFile],
    folder: PredictionFolder,
    *,
    actors: int = 2,
    cpus: float = 1,
    gpus: float | None = None,
    requests: Sequence[int] = (),
    watch: Callable[[int], object] | None = None,
) -> list[Outcome]:
    """Predict pictures with actors of Ray; the files are those of one process.

    Args:
        recipe: what predicts.
        files: all pictures, as of `find_pictures`; shards are read where they lie.
        folder: where the results go, opened; its `finish` writes the JSON afterwards.
        actors: predictors that work at the same time. Where no cluster is joined (RAY_ADDRESS) they run on this machine.
        cpus: cores that each may use.
        gpus: GPUs for each, or a fraction of one; 0 predicts on CPUs. By default one where the cluster has any.
        requests: once something is in it (put there by a signal, say), the actors end after the pictures at hand.
        watch: called every second with the number of pictures that were done until then.

    Returns:
        What each actor has to tell.

    Raises:
        InputError: Ray is not installed or does not start, an actor has ended, or what one of them raised.
    """
    ray = _start(actors, cpus)
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0)) if gpus is None else gpus
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(_Actor)
    device = "cuda" if gpus else "cpu"
    made = [remote.remote(recipe, device, os.getcwd(), folder.likeness(), Share(rank, actors)) for rank in range(actors)]
    given = ray.put(list(files))
    try:
        return _wait(ray, made, [actor.predict.remote(given) for actor in made], requests, watch)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise InputError(f"an actor has ended ({error}); the same command goes on with what is missing") from None
    finally:
        for actor in made:
            ray.kill(actor)
        folder.read_others()


def _start(actors: int, cpus: float) -> ModuleType:
    """The library, joined to a cluster or with one of this machine.

    Raises:
        InputError: it is not installed or does not start.
    """
    try:
        import ray
    except ImportError:
        raise InputError("predicting on a cluster needs Ray; install it: pip install 'panoptic-detr[cluster]'") from None
    if not ray.is_initialized():
        own = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, ceil(actors * cpus))}
        try:
            ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else own))
        except Exception as error:  # Ray has no type of its own for it
            raise InputError(f"Ray does not start: {error}") from error
    return ray


def _wait(
    ray: Any, actors: Sequence[Any], results: Sequence[Any], requests: Sequence[int], watch: Callable[[int], object] | None
) -> list[Outcome]:
    """Wait for all actors, tell them about an end that is asked for, and say how far they are."""
    waiting, told = list(results), 0
    while waiting:
        done, waiting = ray.wait(waiting, timeout=LOOK)
        ray.get(done)  # raises what an actor raised
        for number in requests[told:]:
            ray.get([actor.stop.remote(number) for actor in actors])
            told += 1
        if watch is not None:
            watch(sum(ray.get([actor.count.remote() for actor in actors])))
    return list(ray.get(list(results)))


class _Actor:
    """One predictor, with lines of its own in the output folder."""

    def __init__(
        self, recipe: Recipe, device: str, where: str, like: tuple[str, CategoryTable, dict[str, Any]], share: Share
    ) -> None:
        os.chdir(where)  # paths mean what they mean to who called
        folder, categories, options = like
        self._folder = PredictionFolder(folder, categories, **options, part=f"{share.rank + 1}-of-{share.processes}")
        self._recipe, self._device, self._share = recipe, device, share
        self._requests: list[int] = []
        self._count = 0

    def predict(self, files: Sequence[PictureFile]) -> Outcome:
        """Predict this actor's share."""

        def watch(*_: object) -> None:
            self._count += 1

        with self._folder as folder:
            model = self._recipe.build(self._device, folder)
            read = read_by_windows if self._recipe.tile else PictureFile.read
            return predict_files(model, self._share.of(files), folder, requests=self._requests, watch=watch, read=read)

    def stop(self, number: int) -> None:
        """End after the pictures at hand."""
        self._requests.append(number)

    def count(self) -> int:
        """Pictures until now."""
        return self._count

"""Many pictures on a cluster that has Ray: each actor predicts its share of the list, as a process of torchrun does.

Every machine must see the pictures, the model and the output folder under the same paths (a shared file system). Takes Ray
(`pip install 'panoptic-detr[cluster]'`).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from types import ModuleType
from typing import Any, Literal

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
PATIENCE = 30.0  # seconds in which an actor that works takes note that it shall end
_SENTENCE = 200  # letters; longer lines of Ray are advice about its settings
_PARTS = 10_000  # of a GPU: what Ray counts in


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
    device: Literal["auto", "cpu", "cuda"] = "auto",
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
        gpus: GPUs for each, or a fraction of one; 0 predicts on CPUs. By default one where the cluster has any, or where there
            are more actors than GPUs the part of one that lets all work (each has the model in its memory).
        device: "cpu" predicts on CPUs, "cuda" on GPUs or not at all.
        requests: once something is in it (put there by a signal, say), the actors end after the pictures at hand.
        watch: called every second with the number of pictures that were done until then.

    Returns:
        What each actor has to tell.

    Raises:
        InputError: Ray is not installed or does not start, the cluster has no room for the actors, an actor has ended, or what
            one of them raised.
    """
    with _started(actors, cpus) as ray:
        gpus = _gpus_for_each(ray, actors, device) if gpus is None else gpus
        _check_room(ray, actors, cpus, gpus)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)(_Actor)
        where = "cuda" if gpus else "cpu"
        made = [remote.remote(recipe, where, os.getcwd(), folder.likeness(), Share(rank, actors)) for rank in range(actors)]
        given = ray.put(list(files))
        try:
            return _wait(ray, made, [actor.predict.remote(given) for actor in made], requests, watch)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:  # lost with its machine, killed for want of memory, not to be made
            raise InputError(f"an actor has ended ({_cause(error)}); the same command goes on with what is missing") from None
        finally:
            for actor in made:
                ray.kill(actor)
            folder.read_others()


def _cause(error: Exception) -> str:
    """What happened: a page of Ray ends with the error of an actor or, if it ends with advice, begins with the event."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if len(lines[-1]) < _SENTENCE else lines[0]


@contextmanager
def _started(actors: int, cpus: float) -> Iterator[ModuleType]:
    """The library, joined to a cluster or with one of this machine; what was started here ends with the block.

    Raises:
        InputError: it is not installed or does not start.
    """
    try:
        import ray
    except ImportError:
        raise InputError("predicting on a cluster needs Ray; install it: pip install 'panoptic-detr[cluster]'") from None
    if ray.is_initialized():
        yield ray
        return
    own = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, ceil(actors * cpus))}
    try:
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else own))
    except Exception as error:  # Ray has no type of its own for it
        raise InputError(f"Ray does not start: {' '.join(str(error).split())}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus_for_each(ray: Any, actors: int, device: str) -> float:
    """A GPU, or the part of one that every actor can have; none where the cluster has none or the device is the CPU.

    Raises:
        InputError: the device is a GPU and the cluster has none.
    """
    there = floor(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and not there:
        raise InputError("the cluster has no GPU, which cuda asks for; leave the device out, or give cpu")
    if device == "cpu" or not there:
        return 0
    sharing = ceil(actors / there)  # actors on the fullest GPU
    return floor(_PARTS / sharing) / _PARTS


def _check_room(ray: Any, actors: int, cpus: float, gpus: float) -> None:
    """Raise `InputError` unless the machines have room for all actors: Ray lets those without a place wait for ever."""

    def room(has: Mapping[str, float]) -> int:
        on_gpus = floor(has.get("GPU", 0)) * floor(1 / gpus) if 0 < gpus < 1 else floor(has.get("GPU", 0) / (gpus or 1))
        on_cpus = floor(has.get("CPU", 0) / cpus) if cpus else actors
        return min(on_cpus, on_gpus) if gpus else on_cpus

    places = sum(room(node["Resources"]) for node in ray.nodes() if node["Alive"])
    if actors > places:
        each = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise InputError(
            f"the cluster has room for {places} actors of {each} each, not for {actors}; ask for fewer or smaller ones"
        )


def _wait(
    ray: Any, actors: Sequence[Any], results: Sequence[Any], requests: Sequence[int], watch: Callable[[int], object] | None
) -> list[Outcome]:
    """Wait for all actors, tell them about an end that is asked for, and say how far they are.

    An actor answers only once it has a place; on a busy cluster that may take hours, so nothing waits for an answer.
    """
    working, told = dict(enumerate(actors)), 0
    waiting, outcomes = dict(zip(results, working, strict=True)), []
    counts, asked = dict.fromkeys(working, 0), dict[Any, int]()
    while waiting:
        done, _ = ray.wait(list(waiting), timeout=LOOK)
        for result in done:
            outcomes += ray.get([result])  # raises what an actor raised
            del waiting[result]
        for number in requests[told:]:
            for place in _not_begun(ray, working, number):
                ray.kill(working.pop(place))
                outcomes.append(Outcome())
            waiting, asked = ({key: place for key, place in rows.items() if place in working} for rows in (waiting, asked))
            told += 1
        asked |= {working[place].count.remote(): place for place in working.keys() - set(asked.values())}
        for answer in ray.wait(list(asked), num_returns=len(asked), timeout=LOOK)[0] if asked else ():
            counts[asked.pop(answer)] = ray.get([answer])[0]
        if watch is not None:
            watch(sum(counts.values()))
    return outcomes


def _not_begun(ray: Any, actors: Mapping[int, Any], number: int) -> set[int]:
    """Ask all actors for an end; those that do not take note of it, for they have no place yet or still start."""
    told = {actor.stop.remote(number): place for place, actor in actors.items()}
    heard, _ = ray.wait(list(told), num_returns=len(told), timeout=PATIENCE)
    return set(told.values()) - {told[answer] for answer in heard}


class _Actor:
    """One predictor, with lines of its own in the output folder."""

    def __init__(
        self, recipe: Recipe, device: str, where: str, like: tuple[str, CategoryTable, dict[str, Any]], share: Share
    ) -> None:
        self._recipe, self._device, self._where, self._like, self._share = recipe, device, where, like, share
        self._requests: list[int] = []
        self._count = 0

    def predict(self, files: Sequence[PictureFile]) -> Outcome:
        """Predict this actor's share. What can fail is done here, for of an actor that cannot be made Ray tells no error."""
        os.chdir(self._where)  # paths mean what they mean to who called
        name, categories, options = self._like
        part = f"actor-{self._share.rank + 1}-of-{self._share.processes}"

        def watch(*_: object) -> None:
            self._count += 1

        with PredictionFolder(name, categories, **options, part=part) as folder:
            model = self._recipe.build(self._device, folder)
            read = read_by_windows if self._recipe.tile else PictureFile.read
            return predict_files(model, self._share.of(files), folder, requests=self._requests, watch=watch, read=read)

    def stop(self, number: int) -> None:
        """End after the pictures at hand."""
        self._requests.append(number)

    def count(self) -> int:
        """Pictures until now."""
        return self._count

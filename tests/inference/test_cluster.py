"""Predicting on a cluster: with a stand-in for Ray whose actors are threads and, where Ray is installed, with two processes."""

import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from panoptic_detr.commands import predict
from panoptic_detr.errors import ConfigError, DataError, InputError
from panoptic_detr.inference import PredictionFolder, Recipe, cluster, find_pictures, ray_predict


class Remote(ThreadPoolExecutor):
    """An actor: its methods run in threads, and give what Ray calls references."""

    def __init__(self, kind, given):
        super().__init__(2)
        self._made = kind(*given)

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self.submit(getattr(self._made, name), *given))


class StandIn:
    """As much of Ray as is used, in this process."""

    class exceptions:  # noqa: N801
        class RayTaskError(Exception):
            pass

        class RayActorError(Exception):
            pass

    def __init__(self):
        self.started, self.asked, self.killed = [], [], 0

    def is_initialized(self):
        return False

    def init(self, **options):
        self.started.append(options)

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, **options):
        self.asked.append(options)
        return lambda kind: SimpleNamespace(remote=lambda *given: Remote(kind, given))

    def put(self, value):
        return value

    def wait(self, references, timeout):
        done, left = wait(references, 0.01)
        return list(done), list(left)

    def get(self, references):
        try:
            return [reference.result() for reference in references]
        except DataError as error:
            failed = self.exceptions.RayTaskError()
            failed.cause = error
            raise failed from None

    def kill(self, actor):
        self.killed += 1
        actor.shutdown()


@pytest.fixture
def ray(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return stand_in


@pytest.fixture
def place(predictor, tmp_path):
    """A folder with a model and pictures, one of them broken."""
    predictor.save(tmp_path / "model.pt")
    (tmp_path / "photos").mkdir()
    for number in range(5):
        picture = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), picture)
    (tmp_path / "photos/broken.png").write_bytes(b"no picture")
    return tmp_path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_actors_write_the_files_of_one_process(ray, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = ["model.pt", "photos", "--device", "cpu", "--output"]
    assert predict.main([*given, "one"]) == 1
    assert predict.main([*given, "two", "--cluster", "ray", "--actors", "3"]) == 1
    assert tree(place / "two") == tree(place / "one")
    assert ray.started[0]["num_cpus"] >= 3
    assert ray.asked == [{"num_cpus": 1, "num_gpus": 0, "max_concurrency": 2}]
    assert ray.killed == 3
    assert json.loads((place / "two/failures.json").read_text())[0]["path"] == "photos/broken.png"
    assert capsys.readouterr().out.count("pictures: 5, segments: ") == 2


def test_an_end_that_is_asked_for_reaches_the_actors_and_the_rest_is_done_later(ray, place, predictor):
    files = find_pictures([place / "photos"])
    recipe = Recipe(str(place / "model.pt"), predictor.settings)
    with PredictionFolder(place / "out", predictor.categories) as folder:
        outcomes = ray_predict(recipe, files, folder, requests=[signal.SIGTERM])
        assert 0 <= len(folder) < 5
        assert sum(outcome.done for outcome in outcomes) == len(folder)
        seen = []
        again = ray_predict(recipe, files, folder, actors=1, watch=seen.append)
        assert len(folder) == 5
        assert again[0].done == 5 - sum(outcome.done for outcome in outcomes)
        assert seen == sorted(seen)


def test_what_an_actor_cannot_do_is_said_in_a_sentence(ray, place, predictor, monkeypatch):
    files = find_pictures([place / "photos"])
    with PredictionFolder(place / "out", predictor.categories) as folder:
        monkeypatch.setattr(cluster, "load_model", lambda *_, **__: (_ for _ in ()).throw(DataError("the weights are gone")))
        with pytest.raises(DataError, match="the weights are gone"):
            ray_predict(Recipe("gone.pt"), files, folder)
        monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(Exception("The current node timed out")))
        with pytest.raises(InputError, match="Ray does not start: The current node timed out"):
            ray_predict(Recipe("gone.pt"), files, folder)
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(InputError, match=r"pip install 'panoptic-detr\[cluster\]'"):
            ray_predict(Recipe("gone.pt"), files, folder)


@pytest.mark.parametrize("more", [["--explain"], ["--track"]])
def test_what_a_cluster_does_not_do_is_refused(place, more):
    with pytest.raises(ConfigError, match="--cluster is for pictures and checkpoints"):
        predict.main(
            [str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--cluster", "ray", *more]
        )
    with pytest.raises(ConfigError, match="--actors 3 means nothing without --cluster"):
        predict.main([str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--actors", "3"])


def test_two_processes_of_ray(place, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'panoptic-detr[cluster]'")
    monkeypatch.chdir(place)
    given = ["model.pt", "photos", "--device", "cpu", "--output"]
    try:
        assert predict.main([*given, "two", "--cluster", "ray"]) == 1
    finally:
        ray.shutdown()
    assert predict.main([*given, "one"]) == 1
    assert tree(place / "two") == tree(place / "one")

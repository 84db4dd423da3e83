"""Predicting on a cluster: with a stand-in for Ray whose actors are threads and, where Ray is installed, with two processes."""

import json
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from panoptic_detr.commands import predict
from panoptic_detr.errors import ConfigError, DataError, InputError
from panoptic_detr.inference import PredictionFolder, Recipe, Share, cluster, find_pictures, load_model, ray_predict


class Remote(ThreadPoolExecutor):
    """An actor: its methods run in threads, and give what Ray calls references; without a place nothing ever comes."""

    def __init__(self, kind, given, placed):
        super().__init__(2)
        self._made = kind(*given) if placed else None

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self.submit(getattr(self._made, name), *given) if self._made else Future())


class StandIn:
    """As much of Ray as is used, in this process."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class RayActorError(RayError):
            pass

        class OutOfMemoryError(RayError):
            pass

    def __init__(self):
        self.started, self.asked, self.actors, self.killed, self.ended = [], [], [], set(), 0
        self.machines = [{"CPU": 4.0}]
        self.places = 100  # what others leave of them

    def is_initialized(self):
        return False

    def init(self, **options):
        self.started.append(options)

    def shutdown(self):
        self.ended += 1

    def nodes(self):
        return [{"Alive": True, "Resources": has} for has in self.machines] + [{"Alive": False, "Resources": {"CPU": 99.0}}]

    def cluster_resources(self):
        return {kind: sum(has.get(kind, 0.0) for has in self.machines) for kind in ("CPU", "GPU")}

    def remote(self, **options):
        self.asked.append(options)

        def make(*given):
            self.actors.append(Remote(self.kind, given, placed=len(self.actors) < self.places))
            return self.actors[-1]

        def declare(kind):
            self.kind = kind
            return SimpleNamespace(remote=make)

        return declare

    def put(self, value):
        return value

    def wait(self, references, num_returns=1, timeout=None):
        assert timeout is not None, "an actor without a place would be waited for for ever"
        done, left = wait(references, 0.01)
        return list(done), list(left)

    def get(self, references):
        assert wait(references, 10).not_done == set(), "an actor without a place would be waited for for ever"
        try:
            return [reference.result() for reference in references]
        except (DataError, OSError) as error:
            failed = self.exceptions.RayTaskError()
            failed.cause = error
            raise failed from None

    def kill(self, actor):
        self.killed.add(actor)
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
    assert ray.killed == set(ray.actors)
    assert (len(ray.killed), ray.ended) == (3, 1)
    assert json.loads((place / "two/failures.json").read_text())[0]["path"] == "photos/broken.png"
    assert capsys.readouterr().out.count("pictures: 5, segments: ") == 2
    (place / "photos/broken.png").write_bytes((place / "photos/0.png").read_bytes())
    assert predict.main([*given, "two", "--cluster", "ray", "--actors", "3"]) == 0
    assert "going on: 5 of 6 pictures are there already" in capsys.readouterr().out
    assert predict.main([*given, "again"]) == 0
    assert tree(place / "two") == tree(place / "again")


def test_an_end_that_is_asked_for_reaches_the_actors_and_the_rest_is_done_later(ray, place, predictor, monkeypatch):
    files = find_pictures([place / "photos"])
    recipe = Recipe(str(place / "model.pt"), predictor.settings)
    asked, heard = [], threading.Event()
    stop, work = cluster._Actor.stop, cluster.predict_files
    monkeypatch.setattr(cluster._Actor, "stop", lambda self, number: (stop(self, number), heard.set()))

    def one_picture_then_wait(*given, watch, **more):
        def then_wait(*done):
            watch(*done)
            asked.append(signal.SIGTERM)  # while an actor works
            assert heard.wait(10)

        return work(*given, watch=then_wait, **more)

    with PredictionFolder(place / "out", predictor.categories) as folder:
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "predict_files", one_picture_then_wait)
            first = ray_predict(recipe, files, folder, actors=1, requests=asked)[0].done
        assert 1 <= first < 5
        assert len(folder) == first
        seen = []
        again = ray_predict(recipe, files, folder, actors=1, watch=seen.append)
        assert len(folder) == 5
        assert again[0].done == 5 - first
        assert seen == sorted(seen)
        assert seen[-1] == len(files) - first


def test_actors_without_a_place_hold_up_neither_the_others_nor_an_end(ray, place, predictor, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    files = find_pictures([place / "photos"])
    asked, seen = [], []

    def watch(done):
        seen.append(done)
        if done == 3:
            asked.append(signal.SIGINT)

    ray.places = 1
    with PredictionFolder(place / "out", predictor.categories) as folder:
        recipe = Recipe(str(place / "model.pt"), predictor.settings)
        outcomes = ray_predict(recipe, files, folder, actors=2, requests=asked, watch=watch)
        assert sorted(outcome.done + len(outcome.failed) for outcome in outcomes) == [0, 3]
        assert len(folder) + sum(len(outcome.failed) for outcome in outcomes) == 3
    assert seen[-1] == 3
    assert len(ray.killed) == 2


@pytest.mark.parametrize(
    ("machines", "actors", "gpus"),
    [
        ([{"CPU": 4, "GPU": 1}], 2, 0.5),
        ([{"CPU": 4, "GPU": 2}], 2, 1),
        ([{"CPU": 8, "GPU": 1}] * 3, 7, 0.3333),
        ([{"CPU": 2}], 2, 0),
    ],
)
def test_actors_share_the_gpus_that_there_are(ray, place, predictor, monkeypatch, machines, actors, gpus):
    ray.machines = machines
    monkeypatch.setattr(cluster._Actor, "predict", lambda *_: None)
    with PredictionFolder(place / "out", predictor.categories) as folder:
        assert ray_predict(Recipe("model.pt"), [], folder, actors=actors) == [None] * actors
    assert ray.asked[0]["num_gpus"] == gpus


@pytest.mark.parametrize(
    ("machines", "wanted", "complaint"),
    [
        ([{"CPU": 4}], {"actors": 5}, "room for 4 actors of 1 CPUs each, not for 5"),
        ([{"CPU": 3}, {"CPU": 3}], {"actors": 3, "cpus": 2}, "room for 2 actors of 2 CPUs each, not for 3"),
        ([{"CPU": 8, "GPU": 1}], {"gpus": 1}, "room for 1 actors of 1 CPUs and 1 GPUs each, not for 2"),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8}], {"actors": 3, "gpus": 0.4}, "room for 2 actors of 1 CPUs and 0.4 GPUs each"),
        ([{"CPU": 8}], {"device": "cuda"}, "the cluster has no GPU, which cuda asks for"),
    ],
)
def test_actors_that_would_wait_for_ever_are_refused(ray, place, predictor, machines, wanted, complaint):
    ray.machines = machines
    with PredictionFolder(place / "out", predictor.categories) as folder, pytest.raises(InputError, match=complaint):
        ray_predict(Recipe("model.pt"), [], folder, **wanted)
    assert ray.actors == []


def test_what_an_actor_cannot_do_is_said_in_a_sentence(ray, place, predictor, monkeypatch):
    files = find_pictures([place / "photos"])
    with PredictionFolder(place / "out", predictor.categories) as folder:
        monkeypatch.setattr(cluster, "load_model", lambda *_, **__: (_ for _ in ()).throw(DataError("the weights are gone")))
        with pytest.raises(DataError, match="the weights are gone"):
            ray_predict(Recipe("gone.pt"), files, folder)
        with monkeypatch.context() as patched:
            patched.setattr(cluster.os, "getcwd", lambda: str(place / "gone"))
            with pytest.raises(FileNotFoundError):
                ray_predict(Recipe("gone.pt"), files, folder)
        monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(Exception("The current node\ntimed out")))
        with pytest.raises(InputError, match="Ray does not start: The current node timed out"):
            ray_predict(Recipe("gone.pt"), files, folder)
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(InputError, match=r"pip install 'panoptic-detr\[cluster\]'"):
            ray_predict(Recipe("gone.pt"), files, folder)


@pytest.mark.parametrize(
    ("kind", "page", "told"),
    [
        ("RayActorError", "The actor died because of an error raised in __init__()\n  File x\nNo module y\n", "No module y"),
        (
            "OutOfMemoryError",
            "1 worker(s) were killed\nTop 10 memory users:\n" + "Refer to the docs. " * 20,
            r"1 worker\(s\) were killed",
        ),
        ("RayError", "", "RayError"),
    ],
)
def test_an_actor_that_is_lost_is_told_in_a_sentence(ray, place, predictor, monkeypatch, kind, page, told):
    lost = getattr(ray.exceptions, kind)(page)
    monkeypatch.setattr(ray, "get", lambda _: (_ for _ in ()).throw(lost))
    complaint = rf"^an actor has ended \({told}\); the same command goes on with what is missing$"
    with PredictionFolder(place / "out", predictor.categories) as folder, pytest.raises(InputError, match=complaint):
        ray_predict(Recipe("gone.pt"), [], folder)
    assert (len(ray.killed), ray.ended) == (2, 1)


@pytest.mark.parametrize("more", [["--explain"], ["--track"]])
def test_what_a_cluster_does_not_do_is_refused(place, more):
    with pytest.raises(ConfigError, match="--cluster is for pictures and checkpoints"):
        predict.main(
            [str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--cluster", "ray", *more]
        )
    with pytest.raises(ConfigError, match="--actors 3 means nothing without --cluster"):
        predict.main([str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--actors", "3"])


def test_a_cluster_in_each_of_several_processes_is_refused_before_anything_is_started(ray, place, monkeypatch):
    monkeypatch.setattr(predict, "join_processes", lambda: Share(1, 4))
    with pytest.raises(ConfigError, match="--cluster ray was started in 4 processes"):
        predict.main([str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--cluster", "ray"])
    assert (ray.started, (place / "out").exists()) == ([], False)


def test_the_device_is_that_of_the_actors(ray, place, monkeypatch):
    given = [str(place / "model.pt"), str(place / "photos"), "--output", str(place / "out"), "--cluster", "ray", "--device"]
    for device in ("cuda:1", "mps"):
        with pytest.raises(ConfigError, match=f"--device {device} with --cluster: Ray chooses"):
            predict.main([*given, device])
    opened = []
    monkeypatch.setattr(
        predict, "load_model", lambda source, device, **more: opened.append(device) or load_model(source, **more)
    )
    with pytest.raises(InputError, match="the cluster has no GPU"):
        predict.main([*given, "cuda"])
    assert opened == ["cpu"]


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

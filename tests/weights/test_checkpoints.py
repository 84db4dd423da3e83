import errno
import multiprocessing
import os
import pickle
import signal

import pytest
import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CheckpointError
from panoptic_detr.files import remove_stale_temporaries
from panoptic_detr.weights.archives import write_atomically
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.zoo import ModelSpec


def table(*names):
    return CategoryTable.from_coco([{"id": i, "name": name, "isthing": 1} for i, name in enumerate(names, 1)])


def tiny_model(width=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    model.spec = ModelSpec("tiny", 2, {"width": width})
    return model


def checkpoint_of(model, **changes):
    return Checkpoint(model=model.spec, state_dict=model.state_dict(), categories=table("cat", "dog"), **changes)


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(
        tmp_path / "run" / "last.pt",
        checkpoint_of(tiny_model(), inference={"threshold": 0.3}, training={"step": 7, "rng": torch.get_rng_state()}),
    )


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_round_trip(tmp_path, name):
    model = tiny_model()
    loaded = load_checkpoint(save_checkpoint(tmp_path / name, checkpoint_of(model, inference={"threshold": 0.3})))
    assert loaded.model == model.spec
    assert loaded.categories == table("cat", "dog")
    assert loaded.inference == {"threshold": 0.3}
    assert loaded.training is None
    assert loaded.versions["torch"] == torch.__version__
    other = tiny_model()
    nn.init.zeros_(other[0].weight)
    loaded.load_into(other)
    assert torch.equal(other[0].weight, model[0].weight)


def test_training_part_and_plain_torch_load(saved):
    assert load_checkpoint(saved).training["step"] == 7
    content = torch.load(saved, weights_only=True)
    assert content["format"] == "panoptic_detr checkpoint"
    assert os.listdir(saved.parent) == ["last.pt"]


def test_safetensors_writes_shared_tensors_under_each_name(tmp_path):
    weight = torch.rand(2, 2)
    path = save_checkpoint(tmp_path / "x.safetensors", Checkpoint(ModelSpec("tiny", 2), {"a": weight, "b": weight}))
    assert torch.equal(load_checkpoint(path).state_dict["b"], weight)


def test_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*none\.pt"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated(saved, part):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_checkpoint(saved)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("/nonexistent/never/made",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"model": Dangerous()}, path), "is not opened, because it could run code"),
        (lambda path: path.write_bytes(pickle.dumps(Dangerous())), "is not opened, because it could run code"),
        (lambda path: path.write_bytes(b"\x89PNG not a checkpoint at all"), "not a checkpoint of this project"),
        (lambda path: path.write_bytes(b""), "not a checkpoint of this project"),
        (
            lambda path: torch.save({"model": {"w": torch.zeros(1)}}, path),
            r"a dict with keys model, not a checkpoint .*convert_checkpoint",
        ),
        (lambda path: torch.save([1], path), "holds a list, not a checkpoint"),
    ],
)
def test_not_a_checkpoint(tmp_path, write, message):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_not_ours_in_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds nothing of ours"):
        load_checkpoint(path)


def test_newer_format(saved):
    content = torch.load(saved, weights_only=True)
    torch.save(content | {"version": 99}, saved)
    with pytest.raises(CheckpointError, match="format version 99; this installation reads up to 1"):
        load_checkpoint(saved)


def test_other_model(saved):
    with pytest.raises(
        CheckpointError,
        match=r"holds 'tiny' and does not fit this model \(overrides\.width 3 there, 5 here\): "
        r"0\.weight is \(3, 2\) in the checkpoint, \(5, 2\) in the model; .*and 2 more",
    ):
        load_checkpoint(saved).load_into(tiny_model(width=5))


def test_missing_and_unexpected_names(saved):
    with pytest.raises(CheckpointError, match=r"1\.weight \(3,\) is only in the checkpoint.*"):
        load_checkpoint(saved).load_into(nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(1, 1)))


def test_other_categories(saved):
    loaded = load_checkpoint(saved)
    loaded.check_categories(table("cat", "dog"))
    with pytest.raises(CheckpointError, match=r"other classes .*label 1: 'dog' \(thing\) here, 'cow' \(thing\) there"):
        loaded.check_categories(table("cat", "cow"))


def test_failed_write_keeps_the_previous_file(saved):
    before = saved.read_bytes()

    def disk_full(stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"cannot write .*last\.pt': No space left on device; the previous file is kept"):
        write_atomically(saved, disk_full)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["last.pt"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "x.pt", checkpoint_of(tiny_model()))


FORK = multiprocessing.get_context("fork")


def stall(path, started):
    """Write half a file, say so, and never end."""

    def write(stream):
        stream.write(b"half")
        stream.flush()
        started.set()
        signal.pause()

    write_atomically(path, write)


def stalled_writer(path):
    started = FORK.Event()
    child = FORK.Process(target=stall, args=(path, started))
    child.start()
    assert started.wait(60)
    return child


def kill(child):
    os.kill(child.pid, signal.SIGKILL)
    child.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(saved):
    folder = saved.parent
    kill(stalled_writer(saved))
    (left,) = folder.glob(".last.pt.*.tmp")
    living = stalled_writer(folder / "best.pt")
    try:
        (folder / ".mine.tmp").write_text("not ours")
        assert remove_stale_temporaries(folder) == [left]
        assert len(list(folder.glob(".best.pt.*.tmp"))) == 1
    finally:
        kill(living)
    assert len(remove_stale_temporaries(folder)) == 1
    assert sorted(os.listdir(folder)) == [".mine.tmp", "last.pt"]
    assert remove_stale_temporaries(folder / "none") == []


def write_often(path, number):
    for _ in range(20):
        write_atomically(path, lambda stream: stream.write(bytes([number]) * 100_000))
        remove_stale_temporaries(path.parent)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_several_processes_write_one_file_and_clean_up_meanwhile(tmp_path):
    path = tmp_path / "last.pt"
    children = [FORK.Process(target=write_often, args=(path, number)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    data = path.read_bytes()
    assert len(data) == 100_000
    assert len(set(data)) == 1
    assert os.listdir(tmp_path) == ["last.pt"]

"""Several processes train as one: equal gradients however images are spread, one vote on bad steps, the same files."""

import math
from dataclasses import replace

import pytest
import torch
from training.process_helpers import DEFORMABLE, DETR, KINDS, gradients_of_first_step, in_processes, make_trainer

from panoptic_detr.config.stages import DetectorStage, TrainConfig
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import CheckpointError, ConfigError, TrainingError
from panoptic_detr.training import stages
from panoptic_detr.training.processes import start_fabric, whole
from panoptic_detr.training.watch.progress import rank_zero_console
from panoptic_detr.weights.checkpoints import load_checkpoint
from panoptic_detr.zoo import BUILDERS

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def assert_close(here, there):
    assert here.keys() == there.keys()
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def keep_gradients(rank, kind, folder, settings):
    trainer = make_trainer(kind, folder / "run", batch_size=2, **settings)
    torch.save(gradients_of_first_step(trainer), folder / f"gradients_{rank}.pt")


def gradients_of_two_processes(kind, folder, **settings):
    folder.mkdir(exist_ok=True)
    in_processes(2, keep_gradients, kind, folder, settings)
    first, second = (torch.load(folder / f"gradients_{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    return first


@pytest.mark.parametrize("kind", KINDS)
def test_however_images_are_spread_the_gradients_are_the_same(kind, tmp_path):
    one = gradients_of_first_step(make_trainer(kind, tmp_path / "one", batch_size=4))
    assert sum(gradient.abs().max() > 1e-3 for gradient in one.values()) > 10
    assert_close(gradients_of_first_step(make_trainer(kind, tmp_path / "parts", batch_size=2, accumulate=2)), one)
    assert_close(gradients_of_two_processes(kind, tmp_path / "two"), one)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["hybrid branch", "masks"])
def test_a_process_may_have_images_without_any_object(kind, strategy, tmp_path):
    images = [0, 3, 1, 1]
    one = gradients_of_first_step(make_trainer(kind, tmp_path / "one", images=images, batch_size=4))
    assert_close(gradients_of_two_processes(kind, tmp_path / "two", images=images, strategy=strategy), one)


# A Mask-DETR needs segment maps from the first step; test_mask_criterion.py has its gradients.
@pytest.mark.parametrize("name", [name for name in BUILDERS if not name.startswith("mask_detr_")])
def test_by_default_every_parameter_gets_a_gradient(name, tmp_path, monkeypatch):
    """Otherwise DDP would have to search for the others in every step (`LossConfig.switches_terms_off`)."""
    deformable = {**DEFORMABLE, "num_one_to_many": 4} if name.startswith("h_") else {**DEFORMABLE, "mixed_selection": False}
    small = DETR if name.startswith("detr") else deformable
    monkeypatch.setitem(KINDS, "this", (name, {**small, "dilation": False}))
    trainer = make_trainer("this", tmp_path)
    found = gradients_of_first_step(trainer)
    assert [name for name, value in trainer.model.named_parameters() if value.requires_grad and name not in found] == []


UNUSED = {
    "no boxes": ("detr", {"l1_weight": 0.0, "giou_weight": 0.0}),
    "no classes": ("two stages, dense loss", {"class_weight": 0.0}),
    "last layer only": ("two stages, dense loss", {"aux_loss": False, "dense_weight": 0.0}),
}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", UNUSED)
def test_parameters_that_no_loss_term_reaches_stay_without_gradient(case, strategy, tmp_path):
    kind, loss = UNUSED[case]
    trainer = make_trainer(kind, tmp_path / "one", loss=loss)
    one = gradients_of_first_step(trainer)
    assert len(one) < len(list(trainer.model.parameters()))
    assert_close(gradients_of_two_processes(kind, tmp_path / "two", loss=loss, strategy=strategy), one)


def test_a_checkpoint_of_two_processes_says_so(tmp_path):
    gradients_of_two_processes("detr", tmp_path)
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert checkpoint.training["processes"] == 2
    assert len(checkpoint.training["random"]) == 2
    with pytest.raises(CheckpointError, match="written by 2 processes and this run has 1"):
        make_trainer("detr", tmp_path / "run", resume=True).fit()


def poison(trainer, step):
    """Make the loss of this process NaN in one step."""
    forward = trainer.criterion.forward

    def poisoned(output, targets, counts=None):
        losses = forward(output, targets, counts)
        return replace(losses, total=losses.total * math.nan) if trainer.state.step == step else losses

    trainer.criterion.forward = poisoned


def skip_what_one_process_cannot_use(rank, folder, strategy):
    trainer = make_trainer("detr", folder, batch_size=2, steps=3, on_nonfinite="skip", strategy=strategy)
    if rank == 1:
        poison(trainer, 1)
    said, trainer.reporter.say = [], lambda text: said.append(text)
    assert trainer.fit().skipped == 1
    assert said[0].startswith("skipped: step 1 is not finite (loss is nan")
    assert f"on images 2, 3; the batch is kept in '{folder}/nonfinite_step_00000001_rank_1.pt'" in said[0]
    assert not [text for text in said if "images 0, 1" in text]
    weights = whole(trainer.model.state_dict())
    assert all(value.isfinite().all() for value in weights.values())
    torch.save(weights, folder / f"weights_{rank}.pt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_skip_a_step_together_and_name_the_images_of_the_one_that_failed(strategy, tmp_path):
    in_processes(2, skip_what_one_process_cannot_use, tmp_path, strategy)
    assert [path.name for path in tmp_path.glob("nonfinite_*")] == ["nonfinite_step_00000001_rank_1.pt"]
    first, second = (torch.load(tmp_path / f"weights_{rank}.pt") for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stop_where_one_process_fails(rank, folder):
    trainer = make_trainer("detr", folder, batch_size=2, steps=3)
    if rank == 1:
        poison(trainer, 0)
    with pytest.raises(TrainingError, match=r"step 0 is not finite \(loss is nan.*on images 2, 3; the batch is kept in "):
        trainer.fit()


def test_processes_stop_together(tmp_path):
    in_processes(2, stop_where_one_process_fails, tmp_path)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["nonfinite_step_00000000_rank_1.pt"]


def write_to_a_full_disk(rank, folder, on_disk_full):
    trainer = make_trainer("detr", folder, batch_size=2, steps=2, checkpoint_every=1, on_disk_full=on_disk_full)
    asked = []

    def refuse(*_):
        asked.append(1)
        raise CheckpointError("cannot write: No space left on device")

    trainer.files.save_last = refuse
    if on_disk_full == "stop":
        with pytest.raises(CheckpointError, match="No space left"):
            trainer.fit()
    else:
        assert trainer.fit().step == 2
    assert bool(asked) == (rank == 0)


@pytest.mark.parametrize("on_disk_full", ["stop", "go_on"])
def test_processes_learn_that_the_first_one_cannot_write(tmp_path, on_disk_full):
    in_processes(2, write_to_a_full_disk, tmp_path, on_disk_full)
    assert [path.name for path in tmp_path.glob("*.pt")] == (["best.pt"] if on_disk_full == "go_on" else [])


def test_another_number_of_processes_than_the_settings_say_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # otherwise they would be four runs in one folder
    with pytest.raises(ConfigError, match=r"4 processes were started .* but train.devices x train.nodes is 1"):
        start_fabric(TrainConfig(output=tmp_path, accelerator="cpu"))


def announce_in_vain(rank, folder):
    trainer = make_trainer("detr", folder / "run", batch_size=2)
    stage, dataset = DetectorStage(train=trainer.config), CocoPanoptic.from_root(folder, "train")
    refused = pytest.raises(TrainingError, match=r"run's folder '.*run' cannot be written: cannot write '.*run\.json'")
    with refused, stages.announced(trainer, stage, dataset, rank_zero_console(trainer.fabric)):
        raise AssertionError("no process may come here")


def test_no_process_begins_where_the_first_one_cannot_write_the_record(tmp_path):
    write_scenes(tmp_path, 2, size=48, workers=1)
    (tmp_path / "run" / "run.json").mkdir(parents=True)
    in_processes(2, announce_in_vain, tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]

"""FSDP: what is trained is spread over two processes, and everything else is as it is without."""

import pytest
import torch
from training.process_helpers import in_processes, make_trainer

from panoptic_detr.config.stages import DetectorStage, ModelConfig, TrainConfig
from panoptic_detr.errors import ConfigError
from panoptic_detr.training.processes import sharding_strategy
from panoptic_detr.training.step import recompute_layers
from panoptic_detr.weights.checkpoints import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def untouched(model):
    """Batch statistics move, as in a real run."""


def run(rank, kind, folder, settings):
    make_trainer(kind, folder, batch_size=2, change=untouched, **settings).fit()


def train(kind, folder, strategy, **settings):
    in_processes(2, run, kind, folder, {"strategy": strategy, **settings})
    return load_checkpoint(folder / "last.pt")


def assert_same(here, there, tolerance=0.0):
    assert here.keys() == there.keys()
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=tolerance, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("kind", ["detr", "hybrid branch", "masks"])
def test_weights_after_some_steps_are_those_of_ddp(kind, tmp_path):
    settings = {"steps": 3, "clip_norm": 0.1, "ema_decay": 0.9}
    plain, spread = (train(kind, tmp_path / strategy, strategy, **settings) for strategy in ("ddp", "fsdp"))
    assert_same(spread.state_dict, plain.state_dict, 1e-5)
    assert_same(spread.training["model"], plain.training["model"], 1e-5)
    assert_same(spread.training["ema"], plain.training["ema"], 1e-5)
    for index, values in plain.training["optimizer"]["state"].items():
        assert_same(spread.training["optimizer"]["state"][index], values, 1e-5)
    rows = [(tmp_path / strategy / "log.csv").read_text().splitlines() for strategy in ("ddp", "fsdp")]
    column = rows[0][0].split(",").index("gradient_norm")
    norms = [[float(line.split(",")[column]) for line in lines[1:]] for lines in rows]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert min(norms[0]) > 0.1  # clipped


def go_on(rank, folder, settings):
    trainer = make_trainer("detr", folder, resume=True, change=untouched, **settings)
    assert trainer.fit().step == settings["steps"]


def stop_early(rank, folder, settings):
    trainer = make_trainer("detr", folder, change=untouched, **settings)
    finished = trainer._finished
    trainer._finished = lambda stop: trainer.state.step == 2 or finished(stop)
    trainer.fit()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_that_was_stopped_goes_on_exactly(strategy, tmp_path):
    settings = {"steps": 5, "ema_decay": 0.9, "batch_size": 1, "accumulate": 2, "strategy": strategy}
    in_processes(2, go_on, tmp_path / "whole", settings)
    in_processes(2, stop_early, tmp_path / "parts", settings)
    assert load_checkpoint(tmp_path / "parts" / "last.pt").training["state"]["step"] == 2
    in_processes(2, go_on, tmp_path / "parts", settings)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert_same(parts.state_dict, whole.state_dict)
    assert_same(parts.training["model"], whole.training["model"])
    assert_same(parts.training["ema"], whole.training["ema"])


def look_inside(rank, folder):
    trainer = make_trainer("masks", folder, batch_size=2, strategy="fsdp")
    start = {name: value.clone() for name, value in trainer.model.detector.state_dict().items()}
    model = trainer.model
    parts = [parameter.to_local().numel() / parameter.numel() for parameter in model.mask_head.parameters()]
    (folder / f"share_{rank}").write_text(str(sum(parts) / len(parts)))
    assert not any(hasattr(parameter, "to_local") for parameter in model.detector.parameters())
    trainer.fit()
    assert_same(model.detector.state_dict(), start)


def test_each_process_holds_a_part_of_what_is_trained_and_all_of_what_is_frozen(tmp_path):
    in_processes(2, look_inside, tmp_path)
    shares = [float((tmp_path / f"share_{rank}").read_text()) for rank in (0, 1)]
    assert shares[0] + shares[1] == pytest.approx(1)
    assert all(0.4 < share < 0.6 for share in shares)


def recompute(rank, folder):
    make_trainer("detr", folder, batch_size=2, strategy="fsdp", steps=2, change=recompute_layers).fit()


def test_with_recomputed_layers(tmp_path):
    plain = train("detr", tmp_path / "plain", "fsdp", steps=2)
    in_processes(2, recompute, tmp_path / "less")
    assert_same(load_checkpoint(tmp_path / "less" / "last.pt").state_dict, plain.state_dict, 1e-6)


def test_what_does_not_go_with_it_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"fsdp does not go with train\.precision: 16-mixed; use bf16-mixed"):
        TrainConfig(strategy="fsdp", precision="16-mixed")
    for name in ("compile", "channels_last"):
        with pytest.raises(ConfigError, match=rf"fsdp does not go with model\.{name}"):
            DetectorStage(ModelConfig(**{name: True}), train=TrainConfig(strategy="fsdp"))
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    with pytest.raises(ConfigError, match=r"fsdp needs PyTorch 2\.7 or newer, but this is 2\.6\.1"):
        sharding_strategy(2)

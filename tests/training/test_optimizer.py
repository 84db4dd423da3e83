"""Groups, schedule, averages and what the progress says."""

import io
import itertools
import math

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from panoptic_detr.config.stages import OptimizerConfig
from panoptic_detr.models.backbones import build_backbone
from panoptic_detr.training.optimizer import (
    AveragedWeights,
    build_optimizer,
    freeze_groups_at_rest,
    parameter_groups,
    rate_factor,
    set_rates,
)
from panoptic_detr.training.step import freeze, set_train_mode
from panoptic_detr.training.watch.progress import Pace, TrainingProgress, duration
from panoptic_detr.zoo import build_model

SMALL = {"backbone": "small", "backbone_norm": "batch", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16}


@pytest.fixture
def model():
    return build_model(
        "deformable_detr_r50", num_labels=3, **SMALL, num_levels=2, encoder_layers=1, decoder_layers=1, num_queries=4
    )


def test_groups_cover_every_trained_parameter_once(model):
    groups = {group.name: group for group in parameter_groups(model, OptimizerConfig(lr=2e-4))}
    assert {name: group.lr for name, group in groups.items()} == pytest.approx(
        {"backbone": 2e-5, "offsets": 2e-5, "transformer and heads": 2e-4}
    )
    assert sum(group.size for group in groups.values()) == sum(p.numel() for p in model.parameters())
    offsets = {id(p) for p in groups["offsets"].parameters}
    named = {name for name, p in model.named_parameters() if id(p) in offsets}
    assert any("sampling_offsets" in name for name in named)
    assert any("reference_points" in name for name in named)
    assert all("sampling_offsets" in name or "reference_points" in name for name in named)


def test_a_group_at_rest_is_frozen(model):
    config = OptimizerConfig(backbone_lr_scale=0)
    assert freeze_groups_at_rest(model, config) == [model.backbone]
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert "backbone" not in {group.name for group in parameter_groups(model, config)}
    freeze([model])
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(model, config)


def test_frozen_parts_are_in_evaluation_mode(model):
    set_train_mode(model, [model.encoder])
    assert model.decoder.training
    assert not any(module.training for module in model.encoder.modules())


def test_step_schedule():
    config = OptimizerConfig(schedule="step", drop_at=[2, 3], drop_factor=0.1)
    assert [rate_factor(step, 40, 10, config) for step in (0, 19, 20, 29, 30, 39)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_cosine_schedule_with_warmup():
    config = OptimizerConfig(schedule="cosine", warmup=0.1)
    factors = [rate_factor(step, 100, 1, config) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_rates_are_set_from_the_base(model):
    config = OptimizerConfig(lr=1e-3)
    optimizer = build_optimizer(parameter_groups(model, config), config)
    for factor in (0.5, 0.1):
        set_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4 * factor, 1e-4 * factor, 1e-3 * factor])


def test_fused_adamw_equals_the_loops():
    weights = []
    for fp16 in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        config = OptimizerConfig(lr=1e-2)
        optimizer = build_optimizer(parameter_groups(layer, config), config, loss_scaling=fp16)
        assert optimizer.defaults["fused"] is not fp16
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(1, 4)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights)


def test_average_of_the_weights():
    layer = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.zeros_(layer[0].weight)
    layer[1].bias.requires_grad_(False)
    average = AveragedWeights(layer, 0.5)
    nn.init.ones_(layer[0].weight)
    layer[1].num_batches_tracked.fill_(7)
    layer[1].running_mean.fill_(1.0)  # was 0, as the weight
    layer[1].bias.fill_(5.0)
    average.update(layer)  # the first step keeps 2 / 11
    average.update(layer)  # the second keeps 3 / 12
    expected = 1 - 2 / 11 * 3 / 12
    with average.applied(layer):
        assert layer[0].weight.item() == pytest.approx(expected)
        assert layer[1].num_batches_tracked == 7
        assert layer[1].running_mean.item() == pytest.approx(expected)
        assert layer[1].bias.item() == 5
    assert layer[0].weight.item() == layer[1].running_mean.item() == 1
    other = AveragedWeights(layer, 0.5)
    other.load_state_dict(average.state_dict())
    assert other.steps == 2
    with other.applied(layer):
        assert layer[0].weight.item() == pytest.approx(expected)


def test_progress_is_quiet_without_a_terminal():
    stream = io.StringIO()
    progress = TrainingProgress(1000, Console(file=stream, width=100))
    progress.start_from(100)
    with progress:
        for step in range(101, 1001):
            progress.update(step, {"loss": 1.0, "class_layer0": 9.0, "gradient_norm": 5.0}, {"lr": "1e-4"})
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 101/1000", "step 1000/1000"]
    assert "loss 1.000  lr 1e-4" in lines[0]
    assert "layer0" not in stream.getvalue()


def test_progress_bar_in_a_terminal():
    stream = io.StringIO()
    progress = TrainingProgress(10, Console(file=stream, width=120, force_terminal=True))
    with progress:
        progress._shown = 0.0
        progress.update(5, {"loss": 1.0}, {"wait": "3%"})
        progress.message("a line above the bar")
    text = stream.getvalue()
    assert "5/10" in text
    assert "wait 3%" in text
    assert "a line above the bar" in text


def test_the_bar_makes_room_for_another_one():
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True)
    with TrainingProgress(10, console) as progress:
        with progress.paused(), Progress(console=console, auto_refresh=False) as other:  # two live bars would both be drawn
            other.add_task("evaluating", total=3)
            stream.truncate(0)
            other.refresh()
            assert "evaluating" in stream.getvalue()
            assert "train" not in stream.getvalue()
        stream.truncate(0)
        progress._shown = 0.0
        progress.update(7, {"loss": 1.0}, {})
        assert "7/10" in stream.getvalue()
    quiet = TrainingProgress(10, Console(file=io.StringIO()))
    with quiet, quiet.paused():
        assert not quiet._live.is_started


def test_pace_and_duration():
    pace = Pace()
    assert pace.facts(torch.device("cpu")) == {}
    pace.add(0.75, 0.25, 8)
    facts = pace.facts(torch.device("cpu"))
    assert (facts["img/s"], facts["wait"]) == ("8.0", "25%")
    assert float(facts["mem"][:-1]) > 0
    assert duration(3725.4) == "1:02:05"


def test_the_summary_of_a_run_says_how_long_steps_waited_for_data():
    pace = Pace()
    pace.add(0.5, 60.0, 8)  # workers start
    assert pace.summary() == ""
    for _ in range(9):
        pace.add(0.8, 0.2, 8)
    assert pace.summary() == "steps waited for data 20% of the time"
    pace.add(0.0, 1.0, 8)
    assert pace.summary().startswith("steps waited for data 28% of the time: raise data.workers, or set data.cache")


@pytest.mark.parametrize("name", ["small", "resnet18", "tf_efficientnet_lite0", "swin_t"])
def test_layer_decay_makes_early_stages_slower(name):
    if name not in ("small", "resnet18"):
        pytest.importorskip("timm")
    backbone = build_backbone(name, norm="batch", levels=(2, 3))
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    config = OptimizerConfig(lr=1.0, backbone_lr_scale=0.8, layer_decay=0.5)
    rates = {parameter: group.lr for group in parameter_groups(model, config) for parameter in group.parameters}
    assert len(rates) == len(list(model.parameters()))
    first, *_, last = backbone.body.parameters()
    assert rates[first] == pytest.approx(0.8 / 16)
    assert rates[last] == pytest.approx(0.4 if name in ("small", "resnet18") else 0.8)  # the others keep their last stage
    assert rates[model["head"].weight] == 1.0
    assert list(rates.values())[-1] == 1.0  # the rate that the log shows
    in_order = [rates[parameter] for parameter in backbone.body.parameters()]
    assert in_order == sorted(in_order)
    every = {group.name: group.lr for group in parameter_groups(model, OptimizerConfig(lr=1.0))}
    assert every == {"backbone": pytest.approx(0.1), "transformer and heads": 1.0}

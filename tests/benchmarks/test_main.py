"""The benchmark measures what it says: kept queries, parts that add up, memory of its own, the same gradients either way."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_detr import build_model
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.commands.cli import run as run_tool
from panoptic_detr.inference.choose import choose_queries
from panoptic_detr.models.cpu.fused import FusedBlock
from tools.benchmarks import (
    __main__ as benchmark,
)
from tools.benchmarks import (
    inference as benchmark_inference,
)
from tools.benchmarks import (
    measure as benchmark_measure,
)
from tools.benchmarks import (
    steps as benchmark_steps,
)
from tools.benchmarks.measure import Stopwatch, check_variants, in_own_process, is_product, peak_memory, product_seconds

TINY = {
    "backbone": "resnet18",
    "hidden_dim": 32,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 20,
}


class WorkClock(TorchDispatchMode):
    """A processor clock that ticks once per operation of torch: the same in every run, on every machine."""

    ticks = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ticks += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def work_clock(monkeypatch):
    with WorkClock() as clock:
        monkeypatch.setattr(benchmark_measure.time, "process_time", lambda: clock.ticks)
        yield


@pytest.fixture
def tiny(monkeypatch):
    """Small models under the names of the large ones."""
    monkeypatch.setattr(benchmark_measure, "build_model", lambda name: build_model(name, **TINY))


def test_a_lap_holds_its_parts_and_the_shortest_lap_counts(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 9.0, 10.0, 11.0, 12.0, 14.0])
    monkeypatch.setattr(benchmark_measure.time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    for _ in range(2):
        with watch.lap():
            assert watch.time("part", max, 3, 5) == 5
    assert watch.laps == [{"part": 2.0, "total": 9.0}, {"part": 1.0, "total": 4.0}]
    assert watch.best() == {"part": 1.0, "total": 4.0}


def test_a_part_may_come_twice_in_a_lap(monkeypatch):
    ticks = iter(range(6))
    monkeypatch.setattr(benchmark_measure.time, "process_time", lambda: next(ticks))
    watch = Stopwatch("cpu")
    with watch.lap():
        watch.time("part", int)
        watch.time("part", int)
    assert watch.best() == {"part": 2, "total": 5}


def test_memory_of_a_process_of_its_own():
    before = peak_memory()
    held = torch.ones(600 * 2**18)  # 600 MiB that the other process must not count
    assert peak_memory() > before + 300
    assert 50 < in_own_process(peak_memory) < peak_memory() - 300
    assert held.sum() == held.numel()


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match=r"no variant 'stage2'; did you mean 'stage 2'\?"):
        check_variants(["stage2"], benchmark_steps.VARIANTS)


@pytest.mark.parametrize("kept", [0, 7, 20])
@pytest.mark.parametrize("name", ["detr_r50_panoptic", "deformable_detr_r50_panoptic"])
def test_exactly_the_wanted_queries_are_confident(name, kept):
    categories = coco_categories(250)
    model = build_model(name, **TINY).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    logits = benchmark_inference.pinned_logits(output, kept, categories)
    assert logits.shape == output.logits.shape
    choice = choose_queries(logits[-1, 0], categories, no_object=output.no_object)
    assert len(choice.queries) == kept
    assert len({choice.categories[q].id for q in choice.queries}) == kept


def test_more_masks_than_queries_are_refused(tiny):
    with pytest.raises(ValueError, match="between 0 and the model's 20 queries, but got 21"):
        benchmark_inference.run(masks=[21], variants=["plain"], picture=(48, 64), short_side=64, memory=False)


def test_variants_differ_in_what_they_name(tiny):
    job, model = benchmark_inference.Job(), build_model("detr_r50_panoptic", **TINY)
    found = {}
    for name, variant in benchmark_inference.VARIANTS.items():
        fast = benchmark_inference.Runner(job, variant, model).model
        conv = fast.mask_head.convs[1].weight
        found[name] = (
            any(isinstance(m, nn.Identity) for m in fast.detector.modules()),
            conv.is_contiguous(memory_format=torch.channels_last),
            any(isinstance(m, FusedBlock) for m in fast.modules()),
            conv.dtype == torch.bfloat16,
        )
    assert found["plain"] == (False, False, False, False)
    assert found["BatchNorm folded"] == (True, False, False, False)
    assert found["channels-last"] == (False, True, False, False)
    assert found["folded, channels-last, fused"] == (True, True, True, False)
    assert found["bf16, folded, channels-last, fused"] == (True, True, True, True)
    assert len(found) == 10


def test_inference_counts_every_part(tiny, work_clock, tmp_path, capsys):
    arguments = ["--masks", "[5, 2]", "--variants", "[plain, 'bf16, folded, channels-last, fused']"]
    size = ["--picture", "[48, 64]", "--short_side", "64", "--repeats", "2", "--memory", "false", "--clock", "cpu"]
    assert benchmark.main(["inference", *arguments, *size, "--json", str(tmp_path / "a.json")]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    rows = content["figures"]["rows"]
    assert [(row["variant"], row["masks"]) for row in rows] == [
        (name, masks) for masks in (5, 2) for name in ("plain", "bf16, folded, channels-last, fused")
    ]
    assert [row["segments"] for row in rows] == [5, 5, 2, 2]
    for row in rows:
        *parts, total = (row["seconds"][part] for part in benchmark_inference.PARTS)
        assert min(parts) > 0
        assert 0.95 * total < sum(parts) <= total  # what lies between the parts is not counted
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == 1
    out = capsys.readouterr().out
    assert "detr_r50_panoptic, 5 masks" in out
    assert f"torch {torch.__version__}" in out


def test_inference_needs_a_panoptic_model(capsys):
    assert run_tool(benchmark.main, ["inference", "--model", "detr_r50"], "benchmark") == 1
    assert "needs a panoptic model: detr_r50_panoptic" in capsys.readouterr().err


def test_a_lost_mask_is_noticed(tiny, monkeypatch):
    runner = benchmark_inference.Runner(
        benchmark_inference.Job(picture=(48, 64), short_side=64),
        benchmark_inference.VARIANTS["plain"],
        build_model("detr_r50_panoptic", **TINY),
    )
    monkeypatch.setattr(benchmark_inference, "pinned_logits", lambda output, kept, categories: torch.zeros_like(output.logits))
    with pytest.raises(RuntimeError, match="3 queries were to be kept, but 0 got a mask"):
        runner.lap(3)


def test_steps_count_every_part(tiny, work_clock, tmp_path, capsys):
    size = ["--picture", "[64, 96]", "--objects", "3", "--repeats", "1", "--memory", "false", "--clock", "cpu"]
    assert benchmark.main(["steps", *size, "--json", str(tmp_path / "a.json")]) == 0
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert [row["variant"] for row in figures["rows"]] == list(benchmark_steps.VARIANTS)
    for row in figures["rows"]:
        seconds = row["seconds"]
        assert (seconds["mask head"] > 0) == row["variant"].startswith("stage 2")
        assert min(seconds[part] for part in ("detector", "matching", "losses", "backward", "optimiser")) > 0
        parts = sum(seconds.values()) - seconds["total"]
        assert 0.95 * seconds["total"] < parts <= seconds["total"]
        assert 0 < row["products_seconds"] < seconds["detector"] + seconds["mask head"] + seconds["backward"]
    first, second = (
        {row["products_seconds"] for row in figures["rows"] if row["variant"].startswith(f"stage {n}")} for n in (1, 2)
    )
    assert len(first) == len(second) == 1  # layout, precision and losses change nothing in what is multiplied
    assert first.pop() > second.pop()
    assert figures["matcher_seconds"] > 0
    assert "matching 300 queries, 100 objects, 7 layers" in capsys.readouterr().out


def test_products_are_found_forward_and_backward():
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(6, 5)
    x, y = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)

    def step():
        (conv(x).relu().sum() + linear(y).exp().sum() + (y @ y.mT).sum()).backward()

    step()
    before = conv.weight.grad.clone()
    found = product_seconds(step)
    torch.testing.assert_close(conv.weight.grad, 2 * before)  # run again for its time, not for its effect
    assert {"convolution", "convolution_backward", "bmm"} <= found.keys()
    assert found.keys() & {"addmm", "mm"}
    assert all(is_product(name) and seconds > 0 for name, seconds in found.items())
    assert not any(is_product(name) for name in ("relu", "exp", "sum", "threshold_backward", "addmm_"))


def test_stage_2_trains_the_mask_head_alone(tiny):
    runner = benchmark_steps.Runner(benchmark_steps.Job(picture=(64, 96), objects=3), benchmark_steps.VARIANTS["stage 2"])
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.lap()
    changed = {
        name.partition(".")[0] for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"mask_head"}


def test_the_mask_head_on_all_queries_gives_the_same_step(tiny):
    weights = []
    for name in ("stage 2", "stage 2, mask head on all queries"):
        runner = benchmark_steps.Runner(benchmark_steps.Job(picture=(64, 96), objects=3), benchmark_steps.VARIANTS[name])
        runner.optimizer.step = runner.optimizer.zero_grad = lambda: None
        runner.lap()
        weights.append(torch.cat([p.grad.flatten() for p in runner.trained]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_activations_kept_for_the_backward_pass_grow_with_the_queries(tiny):
    job = benchmark_steps.Job(picture=(64, 96), objects=2)
    few, many = (
        benchmark_steps.kept_for_backward(benchmark_steps.Runner(job, benchmark_steps.VARIANTS[name]))
        for name in ("stage 2", "stage 2, mask head on all queries")
    )
    assert 0 < few < 0.3 * many  # 2 of 20 queries, and a part that belongs to the image


def test_steps_name_a_detector():
    with pytest.raises(ValueError, match=r"name the detector; its mask head is added for stage 2: detr_r50$"):
        benchmark_steps.run(model="detr_r50_panoptic")


def test_patches_cover_the_image():
    target = benchmark_steps.patches((20, 30), 4, 9)
    assert len(target) == 4
    assert target.segment_map.min() == 1
    assert target.segment_map.shape == (20, 30)


@pytest.mark.parametrize("job", ["inference", "steps", "pq", "data", "attention"])
def test_every_job_explains_its_options(job, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([job, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out

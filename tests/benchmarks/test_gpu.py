"""The GPU's measurement: every part works in miniature on a CPU, and none takes another one down with it."""

import json
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from panoptic_detr.commands.cli import run as run_tool
from panoptic_detr.zoo import build_model
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import gpu
from tools.benchmarks.gpu.device import SMALL, Job, attempt, difference
from tools.benchmarks.gpu.parts import main

PROGRAMS = {
    "kernel": "open(file, 'a').write('{\"case\": 1}\\n')",
    "frames": "open(file, 'a').write('{\"case\": 1}\\n'); import os; os.abort()",
    "graphs": "open(file, 'a').write('{\"case\": 1}\\n'); import time; time.sleep(3600)",
    "demo": "open(file, 'a').write('{\"error\": \"Traceback\\\\nRuntimeError: no\"}\\n'); print('why'); raise SystemExit(1)",
}


def program(name, job, rows):
    return [sys.executable, "-S", "-c", f"file = {str(rows)!r}; {PROGRAMS[name]}"]


def test_a_part_that_crashes_or_hangs_ends_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "command", program)
    monkeypatch.setattr(gpu, "ENOUGH", 0.0)
    monkeypatch.setitem(gpu.PARTS, "graphs", gpu.PARTS["graphs"].__class__(gpu.PARTS["graphs"].rows, 8.0))
    file = tmp_path / "gpu.json"
    options = ["--parts", "[frames, graphs, demo, kernel]", "--output", str(file), "--device", "cpu", "--tiny", "true"]
    assert benchmark.main(["gpu", *options]) == 0
    parts = json.loads(file.read_text())["parts"]
    states = {name: part["state"] for name, part in parts.items()}
    assert states == {"frames": "failed", "graphs": "out of time", "demo": "failed", "kernel": "done"}
    assert all(len(part["rows"]) == 1 for part in parts.values())  # what was written before the end is kept
    assert parts["demo"]["said"] == ["why"]
    out = capsys.readouterr().out
    assert "RuntimeError: no" in out
    assert "out of time" in out


def test_no_part_begins_after_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "command", program)
    result = gpu.run(minutes=0.0, output=tmp_path / "gpu.json", parts=["kernel"], device="cpu", tiny=True)
    assert result["parts"] == {"kernel": {"state": "not run", "rows": []}}


def test_unknown_part(capsys):
    assert run_tool(benchmark.main, ["gpu", "--parts", "[kernels]"], "benchmark") == 1
    assert "did you mean 'kernel'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kernel", "frames", "graphs", "steps masks", "deterministic", "one process", "counting"])
def test_part_in_miniature(name, tmp_path):
    threads = torch.get_num_threads()
    assert main(name, json.dumps({"device": "cpu", "tiny": True}), str(tmp_path / "rows")) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert rows
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    for row in rows:
        assert "error" not in row
        assert row.get("bit-equal", True)
        assert row.get("equal", True)
        assert row.get("all", True)
        assert max(row.get("difference", {}).values(), default=0) < 1e-3


def test_a_case_that_fails_is_a_row():
    row = attempt({"case": 1}, lambda: {"x": 1 / 0})
    assert row["case"] == 1
    assert row["error"].endswith("ZeroDivisionError: division by zero\n")
    assert difference(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == pytest.approx(5 / 4)


@pytest.mark.parametrize("name", ["detr_r50", "h_deformable_detr_r50", "mask_detr_r50"])
def test_no_detector_waits_for_the_device_or_leaves_it(name, monkeypatch):
    """With tensors that only say they are on a GPU, a question to the device raises, and so does a tensor left on the CPU."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the one question that is asked is asked at the start
    small = {**SMALL, "backbone": "resnet18", "num_labels": 9}
    special = {"mask_detr_r50": {"stuff_labels": (1, 2)}, "h_deformable_detr_r50": {"num_one_to_many": 30}}.get(name, {})
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build_model(name + "_panoptic", **small, **special)
        images = torch.randn(2, 3, 64, 96, device="cuda")
        output = model(images, torch.zeros(2, 64, 96, dtype=torch.bool, device="cuda"))
        masks = model.segment(output, [torch.tensor([1, 2], device="cuda"), torch.tensor([3], device="cuda")])
    assert {tensor.device.type for tensor in (output.logits, output.boxes, *masks)} == {"cuda"}
    assert [len(mask) for mask in masks] == [2, 1]


def test_job_counts_the_memory_of_this_process_on_a_cpu():
    job = Job("cpu", True)
    job.settle()
    job.forget_peak()
    assert job.peak_mib() > 100

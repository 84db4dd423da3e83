"""Training as a shell, torchrun and a cluster's scheduler start and stop it: real processes, real signals."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.weights.checkpoints import load_checkpoint

TINY = """
model:
  name: detr_r50
  overrides: {backbone: small, backbone_norm: batch, hidden_dim: 32, num_queries: 12, num_heads: 2, encoder_layers: 1,
    decoder_layers: 2, ffn_dim: 32}
data: {train_split: train, val_split: train, workers: 1}
augmentation: {preset: scenes}
optimizer: {lr: 1e-3, backbone_lr_scale: 1.0}
train: {steps: 4, batch_size: 2, accelerator: cpu, threads: 1, tensorboard: false}
inference: {short_side: null}
"""
SHELL = [sys.executable, "-m", "panoptic_detr.commands.cli"]
LIMIT = 240  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    write_scenes(folder / "scenes", 8, size=48, workers=1)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@contextmanager
def started(folder, output, *arguments, launcher=SHELL):
    """train_detector in a process group of its own, as a shell and a scheduler start it; nothing of it survives the context."""
    common = ["train_detector", "--config", folder / "tiny.yaml", "--data.root", folder / "scenes", "--train.output", output]
    process = subprocess.Popen(
        [str(word) for word in [*launcher, *common, *arguments]],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        yield process
    finally:
        for pid in {process.pid, *those_that_name(output)}:  # torchrun gives its processes groups of their own
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT)


def those_that_name(path):
    """Leaders of process groups with this path in their command line, on Linux."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(path) in (entry / "cmdline").read_text() and os.getpgid(int(entry.name)) == int(entry.name):
                yield int(entry.name)


def finish(process):
    said = process.communicate(timeout=LIMIT)[1]
    return process.returncode, said


def run_to_the_end(*arguments, **named):
    with started(*arguments, **named) as process:
        return finish(process)


def wait_for_steps(process, output, steps):
    for _ in range(10 * LIMIT):
        log = output / "log.csv"
        if log.is_file() and len(log.read_text().splitlines()) > steps:
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    pytest.fail(f"no {steps} steps in {LIMIT} seconds")


@pytest.mark.parametrize(("number", "devices"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_to_the_whole_process_group_ends_a_run_in_good_order(folder, tmp_path, number, devices):
    output = tmp_path / "run"
    endless = ("--train.steps", 100_000, "--train.log_every", 1, "--train.checkpoint_every", 0, "--train.devices", devices)
    with started(folder, output, *endless) as process:
        wait_for_steps(process, output, 3)
        os.killpg(process.pid, number)
        code, said = finish(process)
    assert (code, "Traceback" in said) == (0, False), said
    (stopped,) = [line for line in said.splitlines() if line.startswith("stopped by ")]
    assert stopped.startswith(f"stopped by {number.name} after step ")
    done = load_checkpoint(output / "last.pt").training["state"]["step"]
    assert done >= 3
    command = shlex.split(stopped.partition("go on with: panoptic-detr ")[2])
    again = subprocess.run(
        [*SHELL, *command, "--train.steps", str(done + 2)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert again.returncode == 0, again.stderr
    assert f"going on after step {done} of {done + 2}" in again.stderr
    assert load_checkpoint(output / "last.pt").training["state"]["step"] == done + 2


@pytest.mark.parametrize("job", ["train_detector", "train_masks"])
@pytest.mark.parametrize("package", ["commands", "tools"])
def test_launchers_start_a_stage_as_a_module(package, job):
    command = [sys.executable, "-m", f"panoptic_detr.{package}.{job}", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"usage: panoptic-detr {job}" in found.stdout


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize("launcher", [SHELL, [*TORCHRUN, "-m", "panoptic_detr.commands.cli"]], ids=["shell", "torchrun"])
def test_two_processes_are_started_and_train_to_the_end(folder, tmp_path, launcher):
    output = tmp_path / "run"
    code, said = run_to_the_end(folder, output, "--train.devices", 2, "--train.evaluate_every", 2, launcher=launcher)
    assert code == 0, said
    assert said.count("4 steps of 4 images") == 1
    assert said.count("step 4: box AP") == 1
    assert load_checkpoint(output / "last.pt").training["processes"] == 2
    assert load_checkpoint(output / "best.pt").training is None


def test_what_ends_one_process_ends_the_other_too(folder, tmp_path):
    """An image that cannot be read is met by one process only; the other one waits for its gradients."""
    write_scenes(tmp_path / "scenes", 8, size=48, workers=1)
    sorted((tmp_path / "scenes" / "train").iterdir())[3].write_bytes(b"no picture")
    code, said = run_to_the_end(folder, tmp_path / "run", "--data.root", tmp_path / "scenes", "--train.devices", 2)
    assert code != 0
    assert "000003.png" in said

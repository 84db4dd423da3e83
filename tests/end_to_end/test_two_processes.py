"""Both stages and the evaluation with two processes, as torchrun starts them: one speaks and writes, both work."""

import os
import sys

import pytest
from training.process_helpers import in_processes

from panoptic_detr.commands import cli
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.weights.checkpoints import load_checkpoint

TINY = """
model:
  name: deformable_detr_r50_two_stage
  overrides: {backbone: small, backbone_norm: batch, backbone_levels: [0, 1, 2, 3, 4], num_backbone_levels: 3, num_levels: 3,
    hidden_dim: 32, num_queries: 12, num_heads: 2, num_points: 2, encoder_layers: 1, decoder_layers: 2, ffn_dim: 32,
    mixed_selection: true, dense_aux: true}
data: {train_split: train, val_split: train, workers: 0}
augmentation: {preset: scenes}
optimizer: {lr: 2e-3, clip_norm: 1.0, schedule: cosine}
train: {steps: 3, batch_size: 2, evaluate_every: 2, accelerator: cpu, devices: 2, ema_decay: 0.9, tensorboard: false}
inference: {short_side: null, threshold: 0.05}
"""


def call(rank, folder, job, *arguments):
    """Run a job with its output in files of this process, in what looks like a terminal."""
    os.environ["FORCE_COLOR"] = "1"
    for number, stream in ((1, "out"), (2, "err")):  # also what libraries write past sys.stdout and sys.stderr
        os.dup2(os.open(folder / f"{job}_{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    written = []

    def watch(event, details):
        if event == "open" and isinstance(details[0], str) and details[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(details[0])

    sys.addaudithook(watch)
    assert cli.main([job, *map(str, arguments)]) == 0
    sys.stdout.flush()
    assert bool([path for path in written if path.startswith(str(folder / "runs"))]) == (rank == 0 and job != "evaluate")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_both_stages_and_evaluate(tmp_path, strategy):
    write_scenes(tmp_path / "scenes", 5, size=48, workers=1)
    (tmp_path / "tiny.yaml").write_text(TINY)
    common = ["--config", tmp_path / "tiny.yaml", "--data.root", tmp_path / "scenes", "--train.strategy", strategy]
    boxes, masks = tmp_path / "runs" / "boxes", tmp_path / "runs" / "masks"
    in_processes(2, call, tmp_path, "train_detector", *common, "--train.output", boxes)
    in_processes(2, call, tmp_path, "train_masks", *common, "--detector", boxes / "best.pt", "--train.output", masks)
    score = [masks / "best.pt", "--data.root", tmp_path / "scenes", "--data.split", "train", "--device", "cpu"]
    in_processes(2, call, tmp_path, "evaluate", *score)

    said = {path.name: path.read_text() for path in tmp_path.glob("*.???")}
    assert all("━" in said[f"{job}_0.err"] for job in ("train_detector", "train_masks", "evaluate"))
    assert "step 3: box AP" in said["train_detector_0.err"]
    assert "step 3: PQ" in said["train_masks_0.err"]
    assert "PQ" in said["evaluate_0.out"]
    assert {name: text for name, text in said.items() if name[:-4].endswith("_1")} == {
        f"{job}_1.{stream}": "" for job in ("train_detector", "train_masks", "evaluate") for stream in ("out", "err")
    }
    assert load_checkpoint(masks / "last.pt").training["processes"] == 2
    assert load_model(masks / "best.pt").settings.threshold == 0.05

"""Every detector becomes a panoptic model: boxes, masks on the frozen detector, joint training, prediction, PQ."""

import pytest
import torch

from panoptic_detr.commands import train_detector, train_masks
from panoptic_detr.commands.cli import run
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.evaluation.evaluate import evaluate_model
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.weights.checkpoints import load_checkpoint

FAMILIES = {
    "detr_r50": "",
    "deformable_detr_r50": "num_points: 2",
    "deformable_detr_r50_refine": "num_points: 2",
    "deformable_detr_r50_two_stage": "num_points: 2",
    "deformable_detr_r50_single_scale": "num_points: 2",
    "h_deformable_detr_r50": "num_points: 2, num_one_to_many: 12",
}
TINY = """
model:
  name: {name}
  overrides: {{backbone: small, backbone_norm: batch, hidden_dim: 32, num_queries: 10, num_heads: 2, encoder_layers: 1,
    decoder_layers: 2, ffn_dim: 32, {extra}}}
data: {{train_split: train, val_split: null, workers: 0, cache: true}}
augmentation: {{preset: scenes}}
optimizer: {{lr: 1e-3, backbone_lr_scale: 1.0}}
train: {{steps: 3, batch_size: 4, tensorboard: false}}
inference: {{short_side: null}}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 8, size=64, workers=1)
    return folder


def call(tool, config, scenes, output, *arguments):
    common = ["--config", config, "--data.root", scenes, "--train.output", output]
    assert run(tool.main, [str(argument) for argument in [*common, *arguments]], tool.__name__) == 0
    return output / "last.pt"


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, scenes, tmp_path_factory):
    """Folder with the checkpoints of stage 1 and stage 2 of one family, and its settings."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiny.yaml").write_text(TINY.format(name=request.param, extra=FAMILIES[request.param]))
    boxes = call(train_detector, folder / "tiny.yaml", scenes, folder / "boxes")
    call(train_masks, folder / "tiny.yaml", scenes, folder / "masks", "--detector", boxes)
    return folder


def detector_part(path):
    weights = load_checkpoint(path).state_dict
    return {name.removeprefix("detector."): value for name, value in weights.items() if name.startswith("detector.")}


def mask_part(path):
    return {name: value for name, value in load_checkpoint(path).state_dict.items() if name.startswith("mask_head.")}


def test_masks_are_learned_on_a_detector_that_stays_bit_identical(trained, scenes, tmp_path):
    before, after = load_checkpoint(trained / "boxes" / "last.pt"), load_checkpoint(trained / "masks" / "last.pt")
    assert after.model.name == before.model.name + "_panoptic"
    detector = detector_part(trained / "masks" / "last.pt")
    assert detector.keys() == before.state_dict.keys()
    assert [name for name, value in before.state_dict.items() if not torch.equal(value, detector[name])] == []
    arguments = ["--detector", trained / "boxes" / "last.pt", "--train.steps", 1, "--optimizer.lr", 1e-12]
    start = mask_part(call(train_masks, trained / "tiny.yaml", scenes, tmp_path / "start", *arguments))
    learned = mask_part(trained / "masks" / "last.pt")
    # The key's bias shifts every logit of a softmax alike, so it alone has no gradient and nothing but decay.
    still = [name for name in learned if torch.allclose(start[name], learned[name], rtol=0, atol=1e-6)]
    assert all(name.endswith("k_linear.bias") for name in still)


def test_joint_training_moves_both_parts(trained, scenes, tmp_path):
    arguments = ["--detector", trained / "masks" / "last.pt", "--joint", "true", "--train.steps", 1]
    joint = call(train_masks, trained / "tiny.yaml", scenes, tmp_path / "joint", *arguments)
    before, after = detector_part(trained / "masks" / "last.pt"), detector_part(joint)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    for part in ("backbone.", "encoder.", "decoder."):
        assert any(name.startswith(part) for name in moved)
    heads, joint_heads = mask_part(trained / "masks" / "last.pt"), mask_part(joint)
    assert not torch.equal(heads["mask_head.out.weight"], joint_heads["mask_head.out.weight"])


def test_predicts_maps_and_has_a_panoptic_quality(trained, scenes):
    predictor = load_model(trained / "masks" / "last.pt")
    dataset = CocoPanoptic.from_root(scenes, "train", transforms=eval_transform(None))
    found = predictor([dataset.image(0), dataset.image(1)], threshold=0.0)
    for segmentation in found:
        assert segmentation.segment_map.shape == (64, 64)
        assert segmentation.segments
        assert sum(segment.area for segment in segmentation.segments) == (segmentation.segment_map > 0).sum()
    scores = evaluate_model(predictor.model, dataset, settings=predictor.settings, ap="masks", progress=False)
    assert 0 <= scores.panoptic.all.pq <= 1
    assert scores.panoptic.images == 8
    assert scores.things.masks.ap is not None


LEARNER = """
model:
  name: h_deformable_detr_r50
  overrides: {backbone: small, backbone_norm: batch, backbone_levels: [0, 1, 2, 3, 4], num_backbone_levels: 3, num_levels: 3,
    hidden_dim: 64, num_queries: 15, num_one_to_many: 30, num_heads: 4, num_points: 4, encoder: dense, encoder_layers: 1,
    decoder_layers: 2, ffn_dim: 128, memory_level: 0, dense_aux: true}
data: {train_split: train, val_split: null, workers: 0, cache: true}
optimizer: {lr: 2e-3, backbone_lr_scale: 2.0, clip_norm: 1.0, schedule: cosine, warmup: 0.05}
train: {steps: 100, batch_size: 4, overfit: 4, tensorboard: false}
inference: {short_side: null, threshold: 0.3, stuff_threshold: 0.2}
"""
MASKS = """
model: {overrides: {mask_scale_maps: true, mask_output_bias: -1.0}}
loss: {mask_focal_weight: 20.0}
train: {steps: 60, evaluate_every: 20}
"""


def test_h_detr_learns_four_scenes(scenes, tmp_path):
    (tmp_path / "boxes.yaml").write_text(LEARNER)
    (tmp_path / "masks.yaml").write_text(MASKS)
    boxes = call(train_detector, tmp_path / "boxes.yaml", scenes, tmp_path / "boxes")
    more = ["--config", tmp_path / "masks.yaml", "--detector", boxes]
    call(train_masks, tmp_path / "boxes.yaml", scenes, tmp_path / "masks", *more)
    lines = (tmp_path / "masks" / "scores.csv").read_text().splitlines()
    assert lines[0].split(",")[:2] == ["step", "PQ"]
    qualities = [float(line.split(",")[1]) for line in lines[1:]]
    assert len(qualities) == 3
    assert qualities[-1] > qualities[0]
    assert qualities[-1] > 0.3

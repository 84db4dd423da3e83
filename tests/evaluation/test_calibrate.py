"""Calibration finds the thresholds that tell true segments from false ones, and scores each pair as an evaluation would."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from torch import nn

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.calibrate import calibrate_thresholds
from panoptic_detr.evaluation.evaluate import evaluate_model
from panoptic_detr.structures import DetectorOutput, FeatureLevel

CANDIDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 3, size=48, seed=4, split="val", workers=1)
    return CocoPanoptic.from_root(root, "val", transforms=eval_transform(48))


class Unsure(nn.Module):
    """Sigmoid classes: true things score 0.55, true stuff 0.25; a false thing of 0.45 and stuff of 0.15 cover all."""

    def __init__(self, dataset):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.table = dataset.categories
        self.targets = {sample.image.sum().item(): sample.target for sample in (dataset[i] for i in range(len(dataset)))}

    def forward(self, images, padding_mask):
        targets = [self.targets[image.sum().item()] for image in images]
        logits = torch.full((1, len(images), 14, self.table.num_labels), -9.0)
        things, stuff = (self.table.label_of[group[0].id] for group in (self.table.things, self.table.stuff))
        for i, target in enumerate(targets):
            for query, label in enumerate(target.labels.tolist()):
                score = 0.55 if self.table.by_label[label].isthing else 0.25
                logits[0, i, query, label] = torch.tensor(score).logit()
            logits[0, i, 12, things], logits[0, i, 13, stuff] = torch.tensor(0.45).logit(), torch.tensor(0.15).logit()

        def segment(_, queries):
            maps = [target.segment_map for target in targets]
            return [self.masks(segments, chosen) for segments, chosen in zip(maps, queries, strict=True)]

        level = FeatureLevel(torch.zeros(len(images), 4, 1, 1), torch.zeros(len(images), 1, 1, dtype=torch.bool), 32)
        boxes, states = torch.full((1, len(images), 14, 4), 0.5), torch.zeros(len(images), 14, 4)
        return DetectorOutput(logits, boxes, states, level, level.features, (), no_object=False, segmenter=segment)

    @staticmethod
    def masks(segments, queries):
        false = torch.full(segments.shape, 20.0)
        masks = [false if query >= 12 else torch.where(segments == query + 1, 9.0, -9.0) for query in queries.tolist()]
        return torch.stack(masks) if masks else torch.zeros(0, *segments.shape)


def test_finds_the_thresholds_between_true_and_false(dataset):
    settings = InferenceSettings(threshold=0.3, short_side=None)
    found = calibrate_thresholds(
        Unsure(dataset).eval(), dataset, settings=settings, candidates=CANDIDATES, batch_size=2, progress=False
    )
    assert found.thresholds == (0.5, 0.2)
    assert found.quality == pytest.approx(1.0)
    assert found.before < 0.2
    assert found.settings == InferenceSettings(threshold=0.5, stuff_threshold=0.2, short_side=None)
    assert (len(found.grid), found.images) == (49, 3)


@pytest.mark.parametrize("pair", [(0.1, 0.1), (0.4, 0.2), (0.5, 0.1), (0.5, 0.6)])
def test_every_pair_scores_as_an_evaluation_with_it(dataset, pair):
    model = Unsure(dataset).eval()
    settings = InferenceSettings(short_side=None, max_segments=5)
    found = calibrate_thresholds(model, dataset, settings=settings, candidates=CANDIDATES, progress=False)
    one = InferenceSettings(threshold=pair[0], stuff_threshold=pair[1], short_side=None, max_segments=5)
    assert found.grid[pair] == evaluate_model(model, dataset, settings=one, progress=False).panoptic.all.pq
    assert found.before == evaluate_model(model, dataset, settings=settings, progress=False).panoptic.all.pq


class SeesPadding(Unsure):
    """Sure of itself where there is no padding only, as a model whose features at the border see what lies beyond."""

    def forward(self, images, padding_mask):
        inside = [image[:, ~padding.all(1)][:, :, ~padding.all(0)] for image, padding in zip(images, padding_mask, strict=True)]
        sizes = {image.shape for image in inside}
        output = super().forward(inside, padding_mask)
        return output if sizes == {images.shape[1:]} else replace(output, logits=torch.full_like(output.logits, -9.0))


@pytest.fixture(scope="module")
def mixed_sizes(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    write_scenes(root, 3, size=48, seed=4, split="val", workers=1)
    name = json.loads((root / "annotations" / "panoptic_val.json").read_text())["annotations"][1]["file_name"]
    for path in (root / "panoptic_val" / name, next((root / "val").glob(f"{Path(name).stem}.*"))):
        cv2.imwrite(str(path), cv2.imread(str(path))[:36])
    return CocoPanoptic.from_root(root, "val", transforms=eval_transform(None))


def test_batches_do_not_change_what_is_found(mixed_sizes):
    model = SeesPadding(mixed_sizes).eval()
    options = {"settings": InferenceSettings(threshold=0.3, short_side=None), "candidates": CANDIDATES, "progress": False}
    one, three = (calibrate_thresholds(model, mixed_sizes, batch_size=size, **options) for size in (1, 3))
    assert one == three
    assert one.quality == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_model_and_masks_run_in_the_precision_of_use(dataset, precision):
    seen = []

    class Watcher(Unsure):
        def forward(self, images, padding_mask):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(images, padding_mask)

        @staticmethod
        def masks(segments, queries):
            seen.append(torch.is_autocast_enabled("cpu"))
            return Unsure.masks(segments, queries)

    settings = InferenceSettings(short_side=None)
    calibrate_thresholds(
        Watcher(dataset).eval(), dataset, settings=settings, candidates=(0.5,), precision=precision, progress=False
    )
    assert seen == [precision == "bf16"] * 6


def test_refuses_a_model_in_training_mode(dataset):
    with pytest.raises(EvaluationError, match="needs the model in eval mode"):
        calibrate_thresholds(Unsure(dataset), dataset)

"""Scoring a model on a data set, with a model that knows the answers and can be told to err."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.coco_ap import encode_masks
from panoptic_detr.evaluation.evaluate import check_same_categories, evaluate_model, evaluate_predictor
from panoptic_detr.evaluation.thing_predictions import encode_thing_masks, find_things, resize_masks
from panoptic_detr.structures import Batch, DetectorOutput, FeatureLevel

COUNT = 5
SETTINGS = InferenceSettings(threshold=0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, COUNT, size=48, seed=4, split="val", workers=1)
    return CocoPanoptic.from_root(root, "val", transforms=eval_transform(48))


class Oracle(nn.Module):
    """Finds the answers by comparing images; query q is segment q of the target, the rest is no object.

    `wrong` are the images for which it sees nothing.
    """

    def __init__(self, dataset, no_object=True, wrong=()):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.samples = [dataset[i] for i in range(len(dataset))]
        self.labels, self.no_object, self.wrong = dataset.categories.num_labels, no_object, wrong
        self.queries = max(len(sample.target) for sample in self.samples) + 2

    def targets(self, images, padding_mask):
        found = []
        for image, padding in zip(images, padding_mask, strict=True):
            inside = image[:, ~padding[:, 0], :][:, :, ~padding[0]]
            (index,) = [i for i, s in enumerate(self.samples) if s.image.shape == inside.shape and torch.equal(s.image, inside)]
            found.append((index, self.samples[index].target))
        return found

    def forward(self, images, padding_mask):
        targets = self.targets(images, padding_mask)
        batch, _, height, width = images.shape
        logits = torch.full((1, batch, self.queries, self.labels + int(self.no_object)), -8.0)
        if self.no_object:
            logits[..., -1] = 0.0
        boxes = torch.full((1, batch, self.queries, 4), 0.5)
        for i, (index, target) in enumerate(targets):
            if index not in self.wrong:
                logits[0, i, torch.arange(len(target)), target.labels] = 8.0
                boxes[0, i, : len(target)] = target.boxes

        def segment(_, queries):
            return [self.masks(target, chosen, height, width) for (_, target), chosen in zip(targets, queries, strict=True)]

        level = FeatureLevel(torch.zeros(batch, 4, 1, 1), torch.zeros(batch, 1, 1, dtype=torch.bool), 32)
        states = torch.zeros(batch, self.queries, 4)
        return DetectorOutput(logits, boxes, states, level, level.features, (), no_object=self.no_object, segmenter=segment)

    @staticmethod
    def masks(target, queries, height, width):
        masks = torch.full((len(queries), height, width), -9.0)
        for row, query in enumerate(queries.tolist()):
            inside = target.segment_map == query + 1
            masks[row, : inside.shape[0], : inside.shape[1]][inside] = 9.0
        return masks


@pytest.mark.parametrize("no_object", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_that_knows_everything(dataset, batch_size, no_object):
    model = Oracle(dataset, no_object).eval()
    scores = evaluate_model(model, dataset, settings=SETTINGS, ap="masks", batch_size=batch_size)
    assert scores.panoptic.all.pq > 0.99
    assert scores.panoptic.images == scores.images == COUNT
    assert scores.things.boxes.ap > 0.99
    assert scores.things.masks.ap > 0.99
    assert list(scores.summary()) == ["PQ", "SQ", "RQ", "PQ things", "PQ stuff", "box AP", "mask AP"]
    assert scores.summary()["PQ"] == scores.panoptic.all.pq


def test_what_it_does_not_see_is_missed(dataset):
    all_seen = evaluate_model(Oracle(dataset).eval(), dataset, settings=SETTINGS)
    blind = evaluate_model(Oracle(dataset, wrong=(0, 3)).eval(), dataset, settings=SETTINGS)
    missed = sum(quality.fn for quality in blind.panoptic.per_class.values())
    assert missed == sum(not s.iscrowd for i in (0, 3) for s in dataset.truth(i).segments)
    assert blind.panoptic.all.pq < all_seen.panoptic.all.pq
    assert blind.things is None


def test_a_detector_is_scored_by_its_boxes(dataset):
    scores = evaluate_model(Oracle(dataset).eval(), dataset, panoptic=False, ap="boxes")
    assert scores.panoptic is None
    assert scores.things.boxes.ap > 0.99
    assert scores.things.masks is None
    assert list(scores.summary()) == ["box AP"]


def test_nothing_to_score_is_an_error_and_no_score(dataset):
    with pytest.raises(EvaluationError, match="no image, so there is nothing to score"):
        evaluate_model(Oracle(dataset).eval(), dataset.subset([]), ap="masks")


def test_bf16_runs_under_autocast(dataset):
    class Watcher(Oracle):
        def forward(self, images, padding_mask):
            assert torch.is_autocast_enabled("cpu")
            return super().forward(images, padding_mask)

    assert evaluate_model(Watcher(dataset).eval(), dataset, settings=SETTINGS, precision="bf16").panoptic.all.pq > 0.99


def test_training_mode_is_refused(dataset):
    with pytest.raises(EvaluationError, match=r"needs the model in eval mode \(dropout off\); call model.eval\(\)"):
        evaluate_model(Oracle(dataset).train(), dataset)


def test_other_categories_are_refused(dataset):
    rows = dataset.categories.to_coco()
    check_same_categories(dataset.categories, dataset.categories)
    check_same_categories(CategoryTable.from_coco(rows[1:]), dataset.categories)
    renamed = CategoryTable.from_coco([{**rows[0], "name": "zebra"}, *rows[1:]])
    with pytest.raises(
        EvaluationError, match=r"category \d+ is 'zebra' \(thing\) for the model, but '.*' \(thing\) in the data set"
    ):
        evaluate_model(Oracle(dataset).eval(), dataset, categories=renamed)
    with pytest.raises(EvaluationError, match=r"category \d+ is '.*' \(\w+\) for the model, but none in the data set; score"):
        check_same_categories(dataset.categories, CategoryTable.from_coco(rows[1:]))


class Pictures:
    """Finds the answers by comparing pictures."""

    def __init__(self, dataset):
        self.dataset, self.seen = dataset, 0

    def __call__(self, picture):
        self.seen += 1
        (index,) = [i for i in range(COUNT) if np.array_equal(self.dataset.image(i), picture)]
        return self.dataset.truth(index)


def worker(rank, folder, dataset, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores = evaluate_model(Oracle(dataset, wrong=(1,)).eval(), dataset, settings=SETTINGS, ap="masks", share=True)
    pictures = Pictures(dataset)
    maps = evaluate_predictor(pictures, dataset, categories=dataset.categories, share=True).panoptic
    assert pictures.seen == len(range(rank, COUNT, 2))
    queue.put((rank, repr(scores.panoptic), repr(scores.things), repr(maps), scores.images))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_share_the_work_and_agree_bit_by_bit(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=worker, args=(rank, tmp_path, dataset, queue), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    results = dict((row[0], row[1:]) for row in (queue.get(), queue.get()))
    alone = evaluate_model(Oracle(dataset, wrong=(1,)).eval(), dataset, settings=SETTINGS, ap="masks")
    maps = evaluate_predictor(Pictures(dataset), dataset, categories=dataset.categories).panoptic
    assert maps.all.pq == 1.0
    assert results[0] == results[1] == (repr(alone.panoptic), repr(alone.things), repr(maps), COUNT)


def output_of(logits, boxes, no_object, masks=None):
    """An output with (B, Q, C) logits and (B, Q, 4) boxes; masks (B, Q, h, w)."""
    level = FeatureLevel(torch.zeros(len(logits), 4, 1, 1), torch.zeros(len(logits), 1, 1, dtype=torch.bool), 32)

    def segment(_, queries):
        return [masks[i][chosen] for i, chosen in enumerate(queries)]

    states = torch.zeros(*logits.shape[:2], 4)
    return DetectorOutput(
        logits[None],
        boxes[None],
        states,
        level,
        level.features,
        (),
        no_object=no_object,
        segmenter=segment if masks is not None else None,
    )


def batch_of(size, original, padded):
    images = torch.zeros(1, 3, *padded)
    return Batch(images, torch.zeros(1, *padded, dtype=torch.bool), sizes=[size], original_sizes=[original], image_ids=[1])


TABLE = CategoryTable.from_coco(
    [{"id": 1, "name": "a", "isthing": 1}, {"id": 3, "name": "b", "isthing": 0}, {"id": 4, "name": "c", "isthing": 1}],
    labels="id",
)


def test_things_of_softmax_classes():
    # Query 0: c; query 1: stuff is best, left out; query 2: no object is best, its best real class is a; slots 0 and 2
    # belong to no category and do not count, however probable.
    probabilities = torch.tensor([[0.1, 0.1, 0, 0.2, 0.5, 0.1], [0, 0.3, 0, 0.6, 0, 0.1], [0.3, 0.1, 0, 0, 0.05, 0.55]])
    boxes = torch.tensor([[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.5]])
    output = output_of(probabilities.log().clamp(min=-50)[None], boxes[None], no_object=True)
    (things,) = find_things(output, batch_of((10, 20), (100, 200), (16, 24)), TABLE)
    assert things.queries.tolist() == [0, 2]
    assert things.category_ids.tolist() == [4, 1]
    assert things.scores.tolist() == pytest.approx([0.5, 0.1])
    assert things.boxes.tolist() == [[0, 0, 200, 100], [0, 25, 100, 75]]


def test_things_of_sigmoid_classes():
    # The best pairs of query and thing: a query may come twice; stuff (slot 3) and slots 0, 2 never.
    probabilities = torch.tensor([[0.99, 0.8, 0.99, 0.95, 0.7], [0.99, 0.1, 0.99, 0.2, 0.75]])
    output = output_of(probabilities.logit()[None], torch.full((1, 2, 4), 0.5), no_object=False)
    (things,) = find_things(output, batch_of((8, 8), (8, 8), (8, 8)), TABLE, most=3)
    assert list(zip(things.queries.tolist(), things.category_ids.tolist(), strict=True)) == [(0, 1), (1, 4), (0, 4)]
    assert things.scores.tolist() == pytest.approx([0.8, 0.75, 0.7])


def test_masks_are_cut_from_the_padding_and_brought_to_the_original_size():
    # The image is 8 x 12 of a 16 x 16 canvas with stride 4, twice as large on disk. The first mask is the left half of the
    # canvas (8 of 12 columns of the image), the second lies on padding only.
    logits = torch.full((2, 4, 4), -1.0)
    logits[0, :, :2] = 1.0
    logits[1, 3] = 1.0
    masks = resize_masks(logits, batch_of((8, 12), (16, 24), (16, 16)), 0)
    assert masks.shape == (2, 16, 24)
    assert torch.equal(masks[0], (torch.arange(24) < 16).expand(16, 24))
    assert not masks[1].any()


def test_resizing_agrees_with_two_steps():
    logits = torch.randn(3, 12, 10)
    full = nn.functional.interpolate(logits[None], (48, 40), mode="bilinear")[0]
    masks = resize_masks(logits, batch_of((48, 40), (48, 40), (48, 40)), 0)
    assert torch.equal(masks, full > 0)


def test_masks_of_a_query_that_comes_twice():
    masks = torch.full((1, 3, 4, 4), -1.0)
    masks[0, 0, 0], masks[0, 1, 1], masks[0, 2, 2] = 1.0, 1.0, 1.0
    probabilities = torch.tensor([[0.1, 0.8, 0.1, 0.1, 0.7], [0.1, 0.1, 0.1, 0.1, 0.75], [0.1, 0.01, 0.1, 0.1, 0.01]])
    output = output_of(probabilities.logit()[None], torch.full((1, 3, 4), 0.5), no_object=False, masks=masks)
    batch = batch_of((4, 4), (4, 4), (4, 4))
    things = find_things(output, batch, TABLE, most=3)
    (encoded,) = encode_thing_masks(output, batch, things)
    expected = encode_masks((masks[0, [0, 1, 0]] > 0).numpy())
    assert encoded == expected
    assert expected[0] != expected[1]

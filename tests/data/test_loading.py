import re

import numpy as np
import pytest
import torch

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.loading import EpochSampler, collate, make_loader
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import scenes_transform
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.structures import Sample, Target


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 7, size=48, workers=1)
    return root


def open_scenes(root, **keywords):
    return CocoPanoptic.from_root(root, "train", transforms=scenes_transform(), **keywords)


def make_sample(height: int, width: int, image_id: int) -> Sample:
    segment_map = torch.ones(height, width, dtype=torch.uint8)
    target = Target(torch.tensor([3]), torch.tensor([[0.5, 0.5, 1.0, 1.0]]), segment_map, image_id)
    return Sample(torch.full((3, height, width), float(image_id)), target, (2 * height, 2 * width), f"{image_id}.jpg")


def test_collate_pads_right_and_below():
    batch = collate([make_sample(4, 6, 1), make_sample(5, 3, 2)])
    assert batch.images.shape == (2, 3, 5, 6)
    assert batch.sizes == [(4, 6), (5, 3)]
    assert batch.original_sizes == [(8, 12), (10, 6)]
    assert batch.image_ids == [1, 2]
    assert (batch.images[0, :, :4, :6] == 1).all()
    assert (batch.images[1, :, :, 3:] == 0).all()
    assert not batch.padding_mask[0, :4, :6].any()
    assert batch.padding_mask[0, 4:].all()
    assert batch.padding_mask[1, :, 3:].all()
    assert [t.segment_map.shape for t in batch.targets] == [(4, 6), (5, 3)]


# --- the order of an epoch ---


def test_epoch_is_a_permutation_that_changes():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(50))
    assert list(sampler) != first
    assert list(EpochSampler(50, seed=2)) != first
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_cover_the_epoch(length, world_size):
    equal = [list(EpochSampler(length, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(share) for share in equal} == {-(-length // world_size)}
    assert {i for share in equal for i in share} == set(range(length))
    exact = [EpochSampler(length, rank=r, world_size=world_size, equal_shares=False) for r in range(world_size)]
    assert sorted(i for sampler in exact for i in sampler) == list(range(length))
    assert [len(sampler) for sampler in exact] == [len(list(sampler)) for sampler in exact]


@pytest.mark.parametrize("position", [0, 1, 4, 5])
def test_resumed_epoch_is_the_rest_of_the_epoch(position):
    whole = EpochSampler(10, rank=1, world_size=2)
    whole.set_epoch(3)
    resumed = EpochSampler(10, rank=1, world_size=2)
    resumed.resume(3, position)
    assert list(resumed) == list(whole)[position:]
    assert len(resumed) == 5
    resumed.set_epoch(4)
    assert len(list(resumed)) == 5


def test_impossible_orders_are_refused():
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1 for 2 process\(es\), but got 2"):
        EpochSampler(4, rank=2, world_size=2)
    with pytest.raises(ValueError, match="at least one sample"):
        EpochSampler(0)
    with pytest.raises(ValueError, match=r"position must be in 0\.\.4"):
        EpochSampler(4).resume(0, 5)


# --- the loader ---


def contents(loader):
    return [(batch.image_ids, batch.images, [t.boxes for t in batch.targets]) for batch in loader]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and all(map(torch.equal, a[2], b[2]))
        for a, b in zip(first, second, strict=True)
    )


def test_loader_batches_everything(scenes):
    loader = make_loader(open_scenes(scenes), batch_size=3)
    assert [len(batch) for batch in loader] == [3, 3, 1]
    assert len(loader) == 3
    assert [len(batch) for batch in make_loader(open_scenes(scenes), batch_size=3, drop_last=True)] == [3, 3]


def test_batches_do_not_depend_on_workers_and_epochs_reach_living_workers(scenes):
    alone, helped = (
        make_loader(open_scenes(scenes), batch_size=3, sampler=EpochSampler(7), workers=workers) for workers in (0, 2)
    )
    epochs = []
    for epoch in range(2):
        alone.set_position(epoch, 0)
        helped.set_position(epoch, 0)
        epochs.append(contents(alone))
        assert same(epochs[-1], contents(helped))
    assert not same(*epochs)
    # Same image in both epochs: other augmentation.
    images = [{i: image for ids, batch, _ in epoch for i, image in zip(ids, batch, strict=True)} for epoch in epochs]
    assert any(not torch.equal(images[0][i], images[1][i]) for i in images[0])


def test_loader_starts_at_any_batch(scenes):
    loader = make_loader(open_scenes(scenes), batch_size=2, sampler=EpochSampler(7))
    loader.set_position(2, 0)
    whole = contents(loader)
    again = make_loader(open_scenes(scenes), batch_size=2, sampler=EpochSampler(7))
    again.set_position(2, 3)
    assert same(contents(again), whole[3:])
    assert len(again) == 4
    again.set_position(2, 4)
    assert contents(again) == []
    with pytest.raises(ValueError, match="make the loader with an EpochSampler"):
        make_loader(open_scenes(scenes), batch_size=2).set_position(0, 1)


def test_loader_leaves_the_global_generator_alone(scenes):
    loader = make_loader(open_scenes(scenes), batch_size=2, sampler=EpochSampler(7))
    state = torch.get_rng_state()
    contents(loader)
    assert torch.equal(torch.get_rng_state(), state)


def error_of(loader, kind) -> str:
    """The message; the error itself would keep the loader and its workers alive."""
    try:
        list(loader)
    except kind as error:
        return str(error)
    pytest.fail(f"no {kind.__name__}")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # PyTorch's, on a machine of fewer cores
def test_no_more_workers_than_samples(scenes):
    assert make_loader(open_scenes(scenes), batch_size=3, workers=9_999_999).num_workers == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_defects_name_the_image_without_a_workers_traceback(layout, workers):
    layout.save_image(np.zeros((5, 6, 3), np.uint8))
    loader = make_loader(CocoPanoptic.from_root(layout.root, "val"), batch_size=1, workers=workers)
    assert re.match(r"\S*panoptic_val\.json: image 7: the image is 6x5", message := error_of(loader, DataError))
    assert "Traceback" not in message
    layout.png.unlink()
    loader = make_loader(CocoPanoptic.from_root(layout.root, "val"), batch_size=1, workers=workers)
    assert "the annotation PNG is missing" in error_of(loader, SegmentMapError)


def test_pinning_reaches_every_tensor(scenes, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    batch = next(iter(make_loader(open_scenes(scenes), batch_size=2)))
    batch.pin_memory()
    assert len(pinned) == 2 + 3 * 2

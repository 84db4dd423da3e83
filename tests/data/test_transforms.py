from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_detr.data.coco.dataset import retarget
from panoptic_detr.data.scenes.dataset import make_scene
from panoptic_detr.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crop,
    Transform,
    crop_window,
    crops_transform,
    eval_transform,
    image_tensor,
    normalize,
    resize_map,
    scenes_transform,
    target_size,
    train_transform,
)
from panoptic_detr.structures import Sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene_sample(index: int = 0, size: int = 64) -> Sample:
    scene = make_scene(index, size=size)
    ids = np.array([0, *(s["id"] for s in scene.segments_info)])
    places = torch.from_numpy((scene.segment_map[..., None] == ids).argmax(-1).astype(np.uint8))
    labels = torch.tensor([s["category_id"] for s in scene.segments_info])
    return Sample(image_tensor(scene.image), retarget(places, labels, index), (size, size), "scene")


def make_sample(height: int, width: int) -> Sample:
    """Left half one segment, right half another; the image shows the column as grey."""
    image = (torch.arange(width) * 255 // max(width - 1, 1)).to(torch.uint8).expand(3, height, width)
    segment_map = (1 + (torch.arange(width) >= width // 2).to(torch.uint8)).expand(height, width).contiguous()
    return Sample(image, retarget(segment_map, torch.tensor([4, 7]), 1), (height, width))


def check_boxes(sample: Sample) -> None:
    """The boxes are those of the map's pixels."""
    height, width = sample.target.segment_map.shape
    for i, (cx, cy, w, h) in enumerate(sample.target.boxes.tolist()):
        rows, columns = torch.where(sample.target.segment_map == i + 1)
        assert cx * width == pytest.approx((columns.min() + columns.max() + 1).item() / 2, abs=1e-3)
        assert cy * height == pytest.approx((rows.min() + rows.max() + 1).item() / 2, abs=1e-3)
        assert w * width == pytest.approx((columns.max() - columns.min() + 1).item(), abs=1e-3)
        assert h * height == pytest.approx((rows.max() - rows.min() + 1).item(), abs=1e-3)


@given(index=st.integers(0, 200), size=st.sampled_from([48, 57]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_horizontal_flip_mirrors_everything_and_twice_is_nothing(index, size):
    sample = scene_sample(index, size)
    flip, keep = Transform(horizontal_flip=1.0), Transform()
    flipped, plain = flip(sample, generator()), keep(sample)
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert torch.equal(flipped.target.segment_map, plain.target.segment_map.flip(-1))
    assert torch.equal(flipped.target.labels, plain.target.labels)
    mirrored = plain.target.boxes * torch.tensor([-1, 1, 1, 1]) + torch.tensor([1, 0, 0, 0])
    torch.testing.assert_close(flipped.target.boxes, mirrored)
    twice = flip(replace(sample, image=sample.image.flip(-1), target=flipped.target), generator())
    assert torch.equal(twice.image, plain.image)
    assert torch.equal(twice.target.segment_map, plain.target.segment_map)
    torch.testing.assert_close(twice.target.boxes, plain.target.boxes)


def test_vertical_flip_turns_top_to_bottom():
    sample = scene_sample()
    flipped = Transform(vertical_flip=1.0)(sample, generator())
    assert torch.equal(flipped.target.segment_map, sample.target.segment_map.flip(0))
    assert torch.equal(flipped.image, normalize(sample.image).flip(1))
    check_boxes(flipped)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # the usual COCO picture
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((360, 640), (750, 1333)),  # the long side is the limit
        ((100, 1000), (133, 1330)),
        ((1, 5000), (1, 1)),
        ((500, 500), (800, 800)),
    ],
)
def test_target_size_keeps_the_aspect_within_both_limits(size, expected):
    if size == (1, 5000):  # nothing smaller than a pixel
        assert min(target_size(size, 800, 1333)) >= 1
    else:
        assert target_size(size, 800, 1333) == expected


def test_eval_transform_resizes_normalises_and_draws_nothing():
    sample = make_sample(60, 80)
    state = torch.get_rng_state()
    result = eval_transform(30, 1333)(sample)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.image.shape == (3, 30, 40)
    assert result.image.dtype == torch.float32
    assert result.image.is_contiguous()
    assert result.original_size == (60, 80)
    assert result.target.segment_map.shape == (30, 40)
    check_boxes(result)
    kept = eval_transform(None)(sample)
    assert kept.image.shape == (3, 60, 80)
    assert torch.equal(kept.target.segment_map, sample.target.segment_map)


def test_normalize_is_the_imagenet_formula():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=generator())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    before = image.clone()
    torch.testing.assert_close(normalize(image), (image / 255 - mean) / std)
    assert torch.equal(image, before)


def test_resized_map_stays_on_the_image():
    """Nearest pixel centre: enlarging by 3 repeats every pixel three times, shrinking by 3 takes the middle one."""
    small = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8)
    assert resize_map(small, (1, 9)).tolist() == [[[1, 1, 1, 2, 2, 2, 3, 3, 3]]]
    large = torch.tensor([[[9, 1, 9, 9, 2, 9, 9, 3, 9]]], dtype=torch.uint8)
    assert resize_map(large, (1, 3)).tolist() == [[[1, 2, 3]]]


def test_wide_id_maps_can_be_resized():
    wide = torch.tensor([[[300, 301]]], dtype=torch.int16)
    resized = resize_map(wide, (2, 4))
    assert resized.dtype == torch.int16
    assert resized[0].tolist() == [[300, 300, 301, 301]] * 2


def test_train_transform_is_the_papers():
    """Half of the pictures keep their aspect; short sides are those of the list unless the long one is at its limit."""
    transform, sample = train_transform(), make_sample(240, 320)
    shapes = [tuple(transform(sample, generator(i)).image.shape[1:]) for i in range(60)]
    sides = {480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800}
    assert all(min(shape) in sides or max(shape) == 1333 for shape in shapes)
    assert all(max(shape) <= 1333 for shape in shapes)
    whole = sum(abs(width / height - 4 / 3) < 0.005 for height, width in shapes)
    assert 18 <= whole <= 42
    assert len({min(shape) for shape in shapes}) >= 8


def test_train_transform_keeps_image_and_map_together():
    """The image shows its column and the map splits it in two, so they can be compared after any flip, crop and resize."""
    transform, sample = (
        train_transform(short_sides=(96, 120), crop_short_sides=(60,), crop_sides=(40, 70)),
        make_sample(90, 140),
    )
    seen = Counter()
    for seed in range(40):
        result = transform(sample, generator(seed))
        check_boxes(result)
        grey = result.image[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]  # 0..1 over the original columns
        right = result.target.labels[result.target.segment_map.long() - 1] == 7
        off_border = (grey - 0.5).abs() > 0.02
        assert torch.equal(right[off_border], (grey > 0.5)[off_border])
        seen[len(result.target)] += 1
    assert seen[2] > 0


def test_segments_outside_the_crop_are_gone():
    transform = Transform(crop=Crop(1.0, short_sides=(20,), min_side=4, max_side=6))
    sizes = set()
    for seed in range(30):
        result = transform(make_sample(20, 40), generator(seed))
        check_boxes(result)
        assert result.target.segment_map.max() == len(result.target)
        sizes.add(len(result.target))
    assert sizes == {1, 2}


@pytest.mark.parametrize("size", [(480, 640), (700, 333), (50, 2000), (3, 3)])
def test_crop_window_is_detrs_in_the_pixels_of_the_original(size):
    for seed in range(50):
        top, left, height, width = crop_window(size, Crop(), generator(seed))
        assert 0 <= top <= size[0] - height
        assert 0 <= left <= size[1] - width
        assert height >= 1
        assert width >= 1
        # At a short side of 400..600 the window has sides of 384..600, or that of the whole picture where it is smaller.
        for side, full in ((height, size[0]), (width, size[1])):
            assert side / min(size) * 600 >= min(384, 400 * full / min(size)) - 300 / min(size)
            assert side / min(size) * 400 <= 600 + 300 / min(size)


def test_scenes_transform_recolours_but_keeps_shapes():
    sample, transform = scene_sample(), scenes_transform(horizontal_flip=0, vertical_flip=0)
    results = [transform(sample, generator(seed)) for seed in range(12)]
    for result in results:
        assert result.image.shape == sample.image.shape
        assert torch.equal(result.target.segment_map, sample.target.segment_map)
        torch.testing.assert_close(result.target.boxes, sample.target.boxes)
    assert len({round(float(result.image.mean()), 4) for result in results}) > 6


def restored(sample: Sample) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (sample.image * std + mean) * 255


def test_each_recolouring_does_what_it_says():
    sample = scene_sample()
    image = sample.image.float()
    torch.testing.assert_close(restored(Transform(invert=1.0)(sample, generator())), 255 - image, atol=1e-3, rtol=0)
    shuffled = restored(Transform(permute_channels=True)(sample, generator(1)))
    torch.testing.assert_close(shuffled.sort(0).values, image.sort(0).values, atol=1e-3, rtol=0)
    factors = []
    for seed in range(20):
        brighter = restored(Transform(brightness=0.2)(sample, generator(seed)))
        factors.append(float(brighter.mean() / image.mean()))
    assert 0.79 < min(factors) < 0.9
    assert 1.05 < max(factors) < 1.21


def test_same_generator_same_sample_whatever_the_global_one_does():
    sample, transform = scene_sample(), train_transform(short_sides=(64, 80), crop_short_sides=(50,), crop_sides=(30, 50))
    first = transform(sample, generator(5))
    torch.manual_seed(1)
    second = transform(sample, generator(5))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target.segment_map, second.target.segment_map)
    state = torch.get_rng_state()
    transform(sample, generator(6))
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_without_a_map_are_resized_too():
    sample = make_sample(40, 60)
    bare = replace(sample, target=replace(sample.target, segment_map=None))
    result = eval_transform(20)(bare)
    assert result.image.shape == (3, 20, 30)
    assert result.target.segment_map is None
    assert torch.equal(result.target.boxes, sample.target.boxes)
    with pytest.raises(ValueError, match="image 1: its target has no segment map, so flips and crops would misplace its boxes"):
        Transform(horizontal_flip=0.5)(bare, generator())


def test_source_sample_is_left_alone():
    sample = scene_sample()
    before = sample.image.clone(), sample.target.segment_map.clone()
    scenes_transform()(sample, generator(3))
    train_transform()(sample, generator(3))
    assert torch.equal(sample.image, before[0])
    assert torch.equal(sample.target.segment_map, before[1])


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        train_transform().long_side = 5


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (200, 70)])
def test_crops_are_squares_of_one_size_with_their_boxes(size):
    transform = crops_transform(crop_size=32, short_sides=(32, 40, 64))
    for seed in range(6):
        sample = transform(make_sample(*size), generator(seed))
        assert sample.image.shape == (3, 32, 32)
        check_boxes(sample)


def test_crops_show_objects_at_several_sizes():
    found = {
        round(float(crops_transform(crop_size=32, short_sides=(side,))(make_sample(64, 200), generator(1)).image[0].std()), 2)
        for side in (32, 64)
    }
    assert len(found) == 2


def test_crops_larger_than_the_picture_are_refused():
    with pytest.raises(ValueError, match="a crop of 256 pixels needs short sides of at least that, but got 200"):
        crops_transform(short_sides=(200, 300))

import numpy as np
import pytest
import torch

from panoptic_detr.data.coco import dataset, resolve_paths
from panoptic_detr.data.coco.dataset import Others
from panoptic_detr.data.photographs import PhotoTransform, lay, paste
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import crops_transform, scenes_transform, train_transform
from panoptic_detr.structures import Sample, Target

PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def sample(seed=0, height=60, width=80, segments=5):
    """Every segment has a colour of its own, so that the picture says where each lies."""
    generator = torch.Generator().manual_seed(seed)
    segment_map = torch.zeros(height, width, dtype=torch.uint8)
    for number in range(1, segments + 1):
        top, left = (int(torch.randint(0, side - 20, (), generator=generator)) for side in (height, width))
        segment_map[top : top + 20, left : left + 20] = number
    image = (segment_map * 40).expand(3, -1, -1).contiguous()
    labels = torch.arange(segments)
    return Sample(image, Target(labels, torch.rand(segments, 4), segment_map, f"image {seed}"), (height, width))


def shown(moved):
    """Brightness of the red channel, as it was in the picture."""
    return (moved.image[0] * 0.229 + 0.485) * 255


@pytest.mark.parametrize("rotation", [0.0, 10.0])
@pytest.mark.parametrize("seed", range(8))
def test_picture_and_map_move_together(seed, rotation):
    transform = PhotoTransform((48, 64), (0.7, 2.0), rotation=rotation, **PLAIN)
    moved = transform(sample(), torch.Generator().manual_seed(seed))
    segment_map = moved.target.segment_map
    colour = torch.cat([torch.zeros(1), 40.0 * (moved.target.labels + 1)])[segment_map.long()]
    # Only where two segments meet does interpolation give a mixed colour.
    assert ((shown(moved) - colour).abs() < 2).float().mean() > 0.8
    assert segment_map.dtype == torch.uint8
    assert sorted(segment_map.unique().tolist()) in ([*range(len(moved.target) + 1)], [*range(1, len(moved.target) + 1)])


def test_no_id_appears_that_was_not_there_and_boxes_are_those_of_the_map():
    transform = PhotoTransform((48, 64), (0.5, 2.0), rotation=15, blur=1.0, copy_paste=0.0)
    targets = [transform(sample(seed), torch.Generator().manual_seed(seed)).target for seed in range(10)]
    assert all(len(target) for target in targets)
    for target in targets:
        for place, (x, y, width, height) in enumerate(target.boxes.tolist()):
            rows, columns = np.nonzero(target.segment_map.numpy() == place + 1)
            size = target.segment_map.shape
            assert x * size[1] == pytest.approx((columns.min() + columns.max() + 1) / 2, abs=1e-3)
            assert y * size[0] == pytest.approx((rows.min() + rows.max() + 1) / 2, abs=1e-3)
            assert (width * size[1], height * size[0]) == pytest.approx((np.ptp(columns) + 1, np.ptp(rows) + 1), abs=1e-3)


def test_the_window_has_one_size_and_small_pictures_are_not_stretched():
    large = PhotoTransform((48, 64), (1.0, 2.0))
    assert {tuple(large(sample(), torch.Generator().manual_seed(seed)).image.shape) for seed in range(5)} == {(3, 48, 64)}
    small = PhotoTransform((48, 64), (0.5, 0.5))
    assert small(sample(), torch.Generator().manual_seed(0)).image.shape == (3, 30, 40)


def test_the_same_generator_gives_the_same_sample():
    transform = PhotoTransform((48, 64), rotation=5, blur=0.5)
    first, second = (transform(sample(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target.segment_map, second.target.segment_map)


def test_colours_change_the_picture_only():
    plain, coloured = (
        PhotoTransform((60, 80), (1.0, 1.0), horizontal_flip=0.0, **settings)
        for settings in (PLAIN, {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1})
    )
    first, second = (transform(sample(), torch.Generator().manual_seed(0)) for transform in (plain, coloured))
    assert torch.equal(first.target.segment_map, second.target.segment_map)
    assert not torch.equal(first.image, second.image)


def test_pasted_segments_lie_in_front_with_their_pixels():
    under, over = sample(0), sample(1)
    image, segment_map, labels = paste(
        under.image,
        under.target.segment_map[None],
        under.target.labels,
        over.image,
        over.target.segment_map[None],
        over.target.labels,
        torch.tensor([1, 4]),
    )
    for number, place in ((6, 2), (7, 5)):
        where = over.target.segment_map == place
        assert torch.equal(segment_map[0] == number, where)
        assert (image[:, where] == over.image[:, where]).all()
        assert labels[number - 1] == over.target.labels[place - 1]
    elsewhere = segment_map[0] <= 5
    assert torch.equal(segment_map[0][elsewhere], under.target.segment_map[elsewhere])
    assert (image[:, elsewhere] == under.image[:, elsewhere]).all()


def test_only_things_of_other_images_are_pasted():
    transform = PhotoTransform((60, 80), (1.0, 1.0), horizontal_flip=0.0, copy_paste=1.0, **PLAIN)
    others = Others(lambda index: sample(index + 1), 3, (2,))
    pasted = [transform(sample(segments=1), torch.Generator().manual_seed(seed), others).target.labels for seed in range(12)]
    assert {tuple(labels.tolist()) for labels in pasted} <= {(0,), (0, 2), (2,)}
    assert any(2 in labels for labels in pasted)


def test_nothing_is_pasted_where_the_map_has_no_number_left():
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    result = paste(image, target, torch.zeros(255, dtype=torch.long), image, target + 1, torch.tensor([0]), torch.tensor([0]))
    assert result[0] is image


def test_boxes_are_measured_once_on_the_moved_map(tmp_path, monkeypatch):
    write_scenes(tmp_path, 1, size=48, workers=1)
    paths = resolve_paths(tmp_path, "train")
    expected = dataset.CocoPanoptic(paths.images, paths.panoptic, paths.annotations, transforms=PhotoTransform((40, 40)))[0]
    monkeypatch.setattr(dataset, "retarget", lambda *_: pytest.fail("measured before the picture was moved"))
    sample = dataset.CocoPanoptic(paths.images, paths.panoptic, paths.annotations, transforms=PhotoTransform((40, 40)))[0]
    assert torch.equal(sample.target.boxes, expected.target.boxes)


def test_a_target_without_map_is_refused():
    boxes_only = Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), Target(torch.tensor([0]), torch.rand(1, 4)), (8, 8))
    with pytest.raises(ValueError, match="need a segment map"):
        PhotoTransform((8, 8))(boxes_only)


def mixed(seed, **settings):
    """A sample with others mixed in, none of which has the sample's colours, and the colours by label."""
    others = Others(lambda index: sample(index + 1, segments=3 + index), 3, (0, 1, 2, 3, 4))
    transform = PhotoTransform((48, 64), (0.5, 1.5), **PLAIN, **settings)
    return transform(sample(seed), torch.Generator().manual_seed(seed), others)


@pytest.mark.parametrize("settings", [{"mosaic": 1.0}, {"mosaic": 1.0, "copy_paste": 1.0, "rotation": 12.0}])
@pytest.mark.parametrize("seed", range(6))
def test_mixed_maps_say_what_the_picture_shows(seed, settings):
    moved = mixed(seed, **settings)
    segment_map, labels = moved.target.segment_map, moved.target.labels
    if "rotation" not in settings:
        assert segment_map.shape == (48, 64)
    assert set(segment_map.unique().tolist()) - {0} == set(range(1, len(labels) + 1))  # every segment, and no other number
    colour = torch.cat([torch.zeros(1), 40.0 * (labels + 1)])[segment_map.long()]
    assert ((shown(moved) - colour).abs() < 2).float().mean() > 0.75  # but for the mixed colours of borders


def test_a_mosaic_has_segments_of_several_images():
    moved = [mixed(seed, mosaic=1.0) for seed in range(6)]
    assert max(len(target) for target in (sample.target for sample in moved)) > 5  # more than one image has
    assert all(len(target.labels.unique()) <= 5 for target in (sample.target for sample in moved))


def test_each_corner_of_a_mosaic_is_that_corner_of_its_picture():
    canvas, places = torch.zeros(3, 6, 8, dtype=torch.uint8), torch.zeros(1, 6, 8, dtype=torch.uint8)
    picture = torch.arange(30, dtype=torch.uint8).view(1, 5, 6).expand(3, -1, -1)
    ids = torch.ones(1, 5, 6, dtype=torch.uint8)
    ids[:, :, 3:] = 0
    labels = lay(canvas, places, torch.tensor([7]), picture, ids, torch.tensor([4]), ((2, 6), (5, 8)))
    assert labels.tolist() == [7, 4]
    assert torch.equal(canvas[:, 2:6, 5:8], picture[:, 1:5, 3:6])
    assert not places.any()  # void there
    lay(canvas, places, labels, picture, ids, torch.tensor([4]), ((0, 2), (0, 5)))
    assert torch.equal(canvas[:, 0:2, 0:5], picture[:, 0:2, 0:5])
    assert places[0, 0].tolist() == [3, 3, 3, 0, 0, 0, 0, 0]
    full = torch.zeros(255, dtype=torch.long)
    assert lay(canvas, places, full, picture, ids, torch.tensor([4]), ((0, 2), (0, 5))) is full


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("preset", ["photos", "paper", "crops", "scenes"])
def test_every_number_of_the_map_comes_from_the_map(preset, dtype):
    """Numbers far apart: what lies between them can only come from interpolation, and it would have a label of its own."""
    transform = {
        "photos": PhotoTransform((40, 56), (0.4, 2.5), rotation=30, blur=1.0),
        "paper": train_transform(short_sides=(31, 57), crop_short_sides=(40,), crop_sides=(20, 40)),
        "crops": crops_transform(crop_size=33, short_sides=(33, 47)),
        "scenes": scenes_transform(),
    }[preset]
    labels = torch.arange(200)
    segment_map = torch.zeros(60, 80, dtype=dtype)
    segment_map[10:40, 10:40], segment_map[30:55, 30:70] = 3, 200
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for seed in range(5):
        target = Target(labels, torch.zeros(200, 4), segment_map)
        moved = transform(Sample(image, target, (60, 80)), torch.Generator().manual_seed(seed)).target
        assert set(moved.labels.tolist()) <= {2, 199}
        assert moved.segment_map.max() <= 2

import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco.dataset import CocoPanoptic, retarget
from panoptic_detr.data.coco.layout import resolve_paths
from panoptic_detr.errors import DataError, SegmentMapError


def open_set(layout: Any, **keywords: Any) -> CocoPanoptic:
    return CocoPanoptic.from_root(layout.root, "val", **keywords)


def test_sample_has_labels_boxes_and_one_map(layout):
    sample = open_set(layout)[0]
    assert sample.image.shape == (3, 4, 6)
    assert sample.image.dtype == torch.uint8
    assert sample.original_size == (4, 6)
    assert sample.file_name == "7.jpg"
    assert sample.target.image_id == 7
    # Without the crowd, in the JSON's order: ball, lawn, cube; contiguous labels 0 ball, 1 cube, 2 lawn.
    assert sample.target.labels.tolist() == [0, 2, 1]
    expected = [[1, 1, 2, 2, 2, 0], [1, 3, 3, 2, 1, 0], [2, 3, 3, 2, 2, 0], [2, 2, 2, 0, 0, 0]]
    assert sample.target.segment_map.tolist() == expected
    assert sample.target.segment_map.dtype == torch.uint8
    # The cube covers columns 1-2 and rows 1-2 of 6 x 4: centre (2/6, 2/4), size (2/6, 2/4).
    torch.testing.assert_close(sample.target.boxes[2], torch.tensor([2 / 6, 2 / 4, 2 / 6, 2 / 4]))
    # The ball has two parts: columns 0-4, rows 0-1.
    torch.testing.assert_close(sample.target.boxes[0], torch.tensor([2.5 / 6, 1 / 4, 5 / 6, 2 / 4]))


def test_truth_keeps_crowds_and_counts_pixels(layout):
    truth = open_set(layout).truth(0)
    assert [(s.id, s.category_id, s.isthing, s.iscrowd, s.area) for s in truth.segments] == [
        (1, 2, True, False, 4),
        (2, 5, True, True, 2),
        (3, 9, False, False, 10),
        (4, 5, True, False, 4),
    ]
    assert truth.segments[1].box == (3, 3, 2, 1)
    assert truth.segment_map[3].tolist() == [3, 3, 3, 2, 2, 0]
    assert truth.segment_map.dtype == np.int32
    assert truth.image_id == 7


def test_labels_follow_the_table_that_is_given(layout):
    table = CategoryTable.from_coco(layout.content["categories"], labels="id")
    assert open_set(layout, categories=table)[0].target.labels.tolist() == [2, 9, 5]


def test_panoptic_folder_may_lie_in_annotations(layout):
    (layout.root / "panoptic_val").rename(layout.root / "annotations" / "panoptic_val")
    assert len(open_set(layout)[0].target) == 3


def test_paths_may_be_named_one_by_one(layout):
    dataset = CocoPanoptic(layout.jpg.parent, layout.png.parent, layout.json)
    assert dataset.image_ids == [7]
    assert dataset.image_path(0) == layout.jpg
    assert dataset.image(0)[0, 1].tolist() == [3, 4, 5]
    mixed = resolve_paths(layout.root, "val", images=layout.root)
    assert mixed.images == layout.root


def test_image_without_segments_is_a_sample_with_an_empty_target(layout):
    layout.segments.clear()
    layout.save()
    layout.save_map(np.zeros((4, 6), np.int32))
    dataset = open_set(layout)
    target = dataset[0].target
    assert len(target) == 0
    assert target.boxes.shape == (0, 4)
    assert not target.segment_map.any()
    assert dataset.truth(0).segments == []


def test_more_than_255_segments_need_wider_numbers(layout):
    ids = np.arange(1, 401, dtype=np.int32).reshape(20, 20)
    layout.content["annotations"][0]["segments_info"] = [{"id": int(i), "category_id": 2} for i in ids.ravel()[::-1]]
    layout.save()
    layout.save_map(ids)
    layout.save_image(np.zeros((20, 20, 3), np.uint8))
    target = open_set(layout)[0].target
    assert target.segment_map.dtype == torch.int16
    assert int(target.segment_map[0, 0]) == 400
    torch.testing.assert_close(target.boxes[399], torch.tensor([0.5, 0.5, 1.0, 1.0]) / 20)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((4, 6), 200, np.uint8),
        np.full((4, 6, 4), 200, np.uint8),
        np.full((4, 6, 3), 200 * 256, np.uint16),
        np.full((4, 6), 200 * 256, np.uint16),
    ],
    ids=["grey", "rgba", "rgb16", "grey16"],
)
def test_other_kinds_of_images_become_rgb(layout, pixels):
    layout.save_image(pixels)
    image = open_set(layout).image(0)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert (image == 200).all()


def test_exif_rotation_is_not_applied(layout):
    picture = np.zeros((4, 6, 3), np.uint8)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    # An APP1 segment with one EXIF entry: orientation (0x0112) = 6, rotate by 90 degrees.
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    exif = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    layout.jpg.write_bytes(data[:2] + exif + data[2:])
    rotated = cv2.imdecode(np.frombuffer(layout.jpg.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert rotated.shape[:2] == (6, 4)  # the file does ask for it
    assert open_set(layout).image(0).shape[:2] == (4, 6)


@pytest.mark.parametrize("name", ["7.png", "7.jpeg"])
def test_image_with_another_ending_is_found(layout, name):
    layout.jpg.rename(layout.jpg.parent / name)
    assert open_set(layout).image_path(0).name == name


def test_name_as_written_wins_over_other_endings(layout):
    layout.save_image(np.zeros((9, 9, 3), np.uint8), "7.png")
    assert open_set(layout).image_path(0) == layout.jpg


def test_dots_in_names_are_not_endings(layout):
    layout.content["images"][0]["file_name"] = "frame.7.jpg"
    layout.save()
    layout.jpg.rename(layout.jpg.parent / "frame.7.png")
    assert open_set(layout).image_path(0).name == "frame.7.png"


# --- bad input: one clear error each, naming the file, the image or the segment, and the way out ---


def change_size(layout):
    layout.save_image(np.zeros((5, 6, 3), np.uint8))


def truncate(attribute: str) -> Callable[[Any], None]:
    def damage(layout):
        path = getattr(layout, attribute)
        path.write_bytes(path.read_bytes()[:60])

    return damage


def truncated_jpeg(layout):
    data = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    layout.jpg.write_bytes(data[:-20])


def grey_png(layout):
    cv2.imwrite(str(layout.png), np.zeros((4, 6), np.uint8))


def palette_png(layout):
    from PIL import Image

    Image.fromarray(np.zeros((4, 6), np.uint8)).convert("P").save(layout.png)


def lose_segment(layout):
    layout.segments.append({"id": 77, "category_id": 2})
    layout.save()


def unlisted_segment(layout):
    del layout.segments[3]
    layout.save()


def unlisted_id_above_all(layout):
    del layout.segments[2]
    layout.save()


PICTURE_DEFECTS = [
    (lambda x: x.jpg.unlink(), DataError, r"image 7: the image .*7\.jpg is missing .*check the image folder"),
    (truncate("jpg"), DataError, r"7\.jpg: not a readable image \(truncated.*or remove it"),
    (truncated_jpeg, DataError, r"7\.jpg: not a readable image"),
    (lambda x: x.jpg.write_bytes(b""), DataError, r"7\.jpg: not a readable image"),
    (lambda x: x.jpg.write_text("no image at all"), DataError, r"7\.jpg: not a readable image"),
    (change_size, DataError, r"image 7: the image is 6x5 pixels but its annotation .*7\.png is 6x4"),
    (lambda x: x.png.unlink(), SegmentMapError, r"image 7: .*7\.png: the annotation PNG is missing; check the panoptic folder"),
    (truncate("png"), SegmentMapError, r"image 7: .*7\.png: not a readable picture"),
    (grey_png, SegmentMapError, r"image 7: .*7\.png: .* this one is grey; convert"),
    (palette_png, SegmentMapError, r"image 7: .*7\.png: .* this one is palette; convert"),
    (lose_segment, SegmentMapError, r"image 7: .*7\.png: segment 77 of the JSON has no pixel in the PNG; remove it"),
    (unlisted_segment, SegmentMapError, r"image 7: .*7\.png: 4 pixels have segment id 300, which the JSON.* does not list"),
    (unlisted_id_above_all, SegmentMapError, r"10 pixels have segment id 1000000"),
]


@pytest.mark.parametrize(("damage", "error", "message"), PICTURE_DEFECTS)
def test_defective_pictures_are_named(layout, damage, error, message, capfd):
    damage(layout)
    dataset = open_set(layout)
    with pytest.raises(error, match=message):
        dataset[0]


# --- targets from maps ---


def test_segments_that_vanish_are_dropped_and_the_others_renumbered():
    segment_map = torch.tensor([[0, 4, 4], [2, 2, 0]], dtype=torch.uint8)
    target = retarget(segment_map, torch.tensor([10, 11, 12, 13]), "a")
    assert target.labels.tolist() == [11, 13]
    assert target.segment_map.tolist() == [[0, 2, 2], [1, 1, 0]]
    torch.testing.assert_close(target.boxes, torch.tensor([[1 / 3, 3 / 4, 2 / 3, 1 / 2], [2 / 3, 1 / 4, 2 / 3, 1 / 2]]))
    assert target.image_id == "a"


def test_map_of_void_alone_leaves_an_empty_target():
    target = retarget(torch.zeros(3, 4, dtype=torch.uint8), torch.tensor([1, 2]), 0)
    assert len(target) == 0
    assert target.boxes.shape == (0, 4)


# --- epochs, subsets, processes ---


def noisy(sample, generator):
    sample.file_name = str(torch.rand(3, generator=generator).tolist())
    return sample


def test_randomness_depends_on_seed_epoch_and_index_only(layout):
    dataset = open_set(layout, transforms=noisy, seed=3)
    first = dataset[0].file_name
    torch.manual_seed(99)
    assert dataset[0].file_name == first
    dataset.set_epoch(1)
    assert dataset[0].file_name != first
    dataset.set_epoch(0)
    assert dataset[0].file_name == first
    assert open_set(layout, transforms=noisy, seed=4)[0].file_name != first


def test_subset_keeps_samples_and_follows_the_epoch(layout):
    for number in (8, 9):
        layout.content["images"].append({"id": number, "file_name": "7.jpg"})
        layout.content["annotations"].append({**layout.content["annotations"][0], "image_id": number})
    layout.save()
    dataset = open_set(layout, transforms=noisy)
    part = dataset.subset([2, 0])
    assert part.image_ids == [9, 7]
    assert len(part) == 2
    assert part[0].file_name == dataset[2].file_name != dataset[1].file_name
    before = part[0].file_name
    dataset.set_epoch(5)
    assert part[0].file_name == dataset[2].file_name != before
    assert part.subset([1]).image_ids == [7]
    assert [sample.target.image_id for sample in part] == [9, 7]


def test_pickled_copy_gives_the_same_samples(layout):
    dataset = open_set(layout, transforms=noisy)
    other = pickle.loads(pickle.dumps(dataset))
    assert other[0].file_name == dataset[0].file_name


def test_cache_reads_each_file_once(layout):
    dataset = open_set(layout, cache="memory")
    first = dataset[0]
    layout.jpg.unlink()
    layout.png.unlink()
    again = dataset[0]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.target.segment_map, again.target.segment_map)


def test_failing_transform_names_the_image(layout):
    def broken(sample, generator):
        raise RuntimeError("shape mismatch")

    with pytest.raises(DataError, match=r"image 7: the transforms failed: shape mismatch"):
        open_set(layout, transforms=broken)[0]


def test_target_is_the_samples_without_the_image(layout):
    dataset = open_set(layout)
    sample = dataset[0].target
    layout.jpg.unlink()
    target = dataset.target(0)
    assert torch.equal(target.labels, sample.labels)
    assert torch.equal(target.boxes, sample.boxes)
    assert torch.equal(target.segment_map, sample.segment_map)


def test_header_of_an_impossible_size_is_an_unreadable_image(layout, capfd):
    data = bytearray(layout.jpg.read_bytes())
    data[16:24] = b"\x7f\xff\xff\xff" * 2  # width and height of the PNG header
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    layout.jpg.write_bytes(data)
    with pytest.raises(DataError, match=r"7\.jpg: not a readable image"):
        open_set(layout)[0]


def test_more_segments_than_16_bits_number_are_all_read(layout):
    ids = np.arange(1, 40_001, dtype=np.int32).reshape(200, 200)
    layout.save_map(ids)
    layout.save_image(np.zeros((200, 200, 3), np.uint8))
    layout.segments[:] = [{"id": value, "category_id": 2} for value in range(40_000, 0, -1)]
    layout.save()
    target = open_set(layout).target(0)
    assert len(target) == 40_000
    assert target.segment_map.flatten()[[0, -1]].tolist() == [40_000, 1]


def test_classes_of_crowds_only_are_told(layout):
    assert open_set(layout).only_crowds == []
    layout.segments[3]["iscrowd"] = 1
    layout.save()
    assert [str(category) for category in open_set(layout).only_crowds] == ["'cube' (thing)"]


def test_an_address_is_no_data_set():
    with pytest.raises(DataError, match=r"'s3://bucket/coco' is an address \(s3\), and only files of this machine are read"):
        resolve_paths(Path("s3://bucket/coco"), "train2017")

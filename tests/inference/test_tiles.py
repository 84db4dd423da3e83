"""Tiles of large pictures: what they cover, how things are joined, and the files of ids."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from panoptic_detr import segment_maps
from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import InputError, PictureError
from panoptic_detr.inference import rasters, stream
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.rasters import Raster, id_store, reduced
from panoptic_detr.inference.tiles import Tiled, spans
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import decode_ids, encode_ids, measure, read_id_png, write_id_png

TABLE = CategoryTable.from_coco(
    [
        {"id": 1, "name": "round", "isthing": 1},
        {"id": 2, "name": "square", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
    ]
)
SKY = 9000


class Reader:
    """A model that reads ids written into the picture; `id // 1000` is the category. It may see things otherwise, too."""

    categories, batch_size = TABLE, 2

    def __init__(self, change=lambda ids: ids):
        self.change, self.sizes = change, []

    def __call__(self, pictures):
        return [self.read(picture) for picture in pictures]

    def read(self, picture):
        self.sizes.append(picture.shape[:2])
        ids, segments, result = self.change(decode_ids(picture)), [], np.zeros(picture.shape[:2], np.int32)
        for number, (value, (area, box)) in enumerate(measure(ids).items(), start=1):
            result[ids == value] = number
            segments.append(Segment(number, value // 1000, value < SKY, 0.5 + area / 10**6, area, box))
        return PanopticSegmentation(result, segments, TABLE)


def drawn(shape, things, side=24):
    """Ids of things of two kinds on stuff, with void in a corner."""
    ids, rng = np.full(shape, SKY, np.int32), np.random.default_rng(0)
    for number in range(things):
        y, x = (int(rng.integers(0, length - side)) for length in shape)
        ids[y : y + side, x : x + side] = 1000 * (1 + number % 2) + number
    ids[:5, :7] = 0
    return ids


@pytest.mark.parametrize(("length", "tile", "overlap"), [(50, 64, 16), (64, 64, 16), (65, 64, 16), (400, 64, 32), (401, 64, 2)])
def test_spans_cover_an_axis_once_and_overlap_enough(length, tile, overlap):
    found = spans(length, tile, overlap)
    assert [pixel for span in found for pixel in range(span.first, span.last)] == list(range(length))
    assert all(
        span.stop - span.start == min(tile, length) and span.start <= span.first < span.last <= span.stop for span in found
    )
    assert all(one.stop - other.start >= overlap for one, other in pairwise(found))
    assert all(one.last - other.start >= overlap // 2 for one, other in pairwise(found))


@pytest.mark.parametrize("shape", [(150, 230), (64, 100), (200, 64), (40, 50)])
def test_what_every_tile_sees_rightly_is_right_as_a_whole(shape):
    truth = drawn(shape, 20 if min(shape) > 100 else 4)
    result = Tiled(Reader(), tile=64, overlap=32)([encode_ids(truth)])[0]
    assert result.segment_map.shape == shape
    found = measure(truth)
    assert len(result.segments) == len(found)
    assert [segment.id for segment in result.segments] == list(range(1, len(found) + 1))
    for segment in result.segments:
        (value,) = np.unique(truth[result.segment_map == segment.id])
        assert (segment.area, segment.box) == found[value]
        assert segment.category_id == value // 1000
        assert segment.isthing == (value < SKY)
    assert (result.segment_map > 0).sum() == (truth > 0).sum()


def test_the_larger_piece_says_what_a_thing_is_and_things_that_do_not_agree_stay_apart():
    truth = np.full((64, 96), SKY, np.int32)
    truth[20:30, 26:47] = 1001  # the tiles are columns 0..63 and 32..95: the second sees less of it

    def cut_is_square(ids):
        return np.where((ids == 1001) & (ids[:, :1] == 1001), 2001, ids)

    (result,) = Tiled(Reader(cut_is_square), tile=64, overlap=32)([encode_ids(truth)])
    assert [(s.category_id, s.area) for s in result.segments if s.isthing] == [(1, 210)]
    truth[20:30] = SKY
    truth[20:30, 40:60] = 1001
    calls = []

    def moved(ids):
        calls.append(1)
        return np.roll(ids, 15, axis=0) if len(calls) == 2 else ids

    (result,) = Tiled(Reader(moved), tile=64, overlap=32)([encode_ids(truth)])
    assert [s.area for s in result.segments if s.isthing] == [80, 120]


def test_tiles_that_make_no_sense_are_refused():
    for tile, overlap in ((16, 4), (64, 1), (64, 33)):
        with pytest.raises(InputError, match=f"overlap by 2 to half of them, but got {tile} and {overlap}"):
            Tiled(Reader(), tile=tile, overlap=overlap)


def test_large_maps_are_written_by_strips_and_lie_in_files(tmp_path, monkeypatch):
    truth = drawn((600, 130), 20)
    for module in (rasters, segment_maps):
        monkeypatch.setattr(module, "LARGE", 1000)
    (result,) = Tiled(Reader(), tile=64, overlap=32, scratch=tmp_path)([encode_ids(truth)])
    assert isinstance(result.segment_map, np.memmap)
    assert list(tmp_path.iterdir()) == []
    write_id_png(tmp_path / "ids.png", result.segment_map)
    assert np.array_equal(read_id_png(tmp_path / "ids.png"), result.segment_map)
    assert stream._drawn(Raster.of(encode_ids(truth)), result).shape == (600, 130, 3)


def test_overlays_of_large_pictures_are_smaller(monkeypatch):
    monkeypatch.setattr(rasters, "_OVERLAY_SIDE", 50)
    picture = cv2.resize(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (103, 97))
    small, small_map = reduced(Raster.of(picture), drawn((97, 103), 3))
    assert small.shape == (32, 34, 3)
    assert small_map.shape == (32, 34)
    assert abs(small.astype(int) - cv2.resize(picture[:96, :102], (34, 32), interpolation=cv2.INTER_AREA)).max() <= 1
    assert id_store((4, 5), None).sum() == 0


@pytest.mark.parametrize("how", [{}, {"tile": (32, 48)}, {"tile": (32, 48), "compression": "zlib"}, {"rowsperstrip": 7}])
def test_tiffs_are_read_by_windows(tmp_path, how):
    tifffile = pytest.importorskip("tifffile")
    picture = np.random.default_rng(0).integers(0, 256, (101, 83, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", picture, photometric="rgb", **how)
    raster = rasters.open_tiff(tmp_path / "x.tif")
    assert raster.shape == (101, 83)
    for rows, columns in ((slice(0, 101), slice(0, 83)), (slice(30, 70), slice(47, 83)), (slice(100, 101), slice(5, 6))):
        assert np.array_equal(raster.window(rows, columns), picture[rows, columns])


def test_only_large_tiffs_are_read_by_windows(tmp_path, monkeypatch):
    pytest.importorskip("tifffile")
    cv2.imwrite(str(tmp_path / "x.tif"), np.zeros((40, 30, 3), np.uint8))
    file = PictureFile(tmp_path / "x.tif", 1, "x")
    assert isinstance(rasters.read_by_windows(file), np.ndarray)
    monkeypatch.setattr(rasters, "LARGE", 1000)
    assert isinstance(rasters.read_by_windows(file), Raster)
    for content in (b"no tiff", b"II*\0junk", b"II*\0", b"MM\0*\0\0\0\x08\0\x01"):
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(PictureError, match="not a readable TIFF"):
            rasters.open_tiff(tmp_path / "x.tif")


@pytest.mark.parametrize("shape", [(600, 300), (256, 513), (3, 2)])
def test_ids_are_written_as_tiled_tiffs_and_read_by_windows(tmp_path, shape):
    tifffile = pytest.importorskip("tifffile")
    ids = drawn(shape, 5) if min(shape) > 3 else np.arange(6, dtype=np.int32).reshape(shape)
    rasters.write_id_tiff(tmp_path / "ids.tif", ids)
    with tifffile.TiffFile(tmp_path / "ids.tif") as tiff:
        page = tiff.pages.first
        assert (page.is_tiled, page.dtype, page.shape, page.compression.name) == (True, np.uint32, shape, "ADOBE_DEFLATE")
    assert np.array_equal(tifffile.imread(tmp_path / "ids.tif"), ids)
    rows, columns = slice(shape[0] // 2, shape[0]), slice(shape[1] // 3, shape[1])
    window = rasters.open_tiff(tmp_path / "ids.tif").read(rows, columns)
    assert np.array_equal(window[..., 0], ids[rows, columns])
    assert [path.name for path in tmp_path.iterdir()] == ["ids.tif"]

"""Defects planted into file names, images and PNGs of the tiny data set of conftest, and what the check must call them."""

from pathlib import Path

import cv2
import numpy as np
from data.planting import BALL, CROWD, CUBE, LAWN, ids_of, repaint, second_image, segment
from PIL import Image


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def exif_jpeg(path: Path, turned: int, size: tuple[int, int] = (6, 4)) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.new("RGB", size, (9, 99, 199)).save(path, "JPEG", exif=exif)


def plant_unsafe_image(layout):
    layout.content["images"][0]["file_name"] = "../val/7.jpg"
    layout.jpg.unlink()


def plant_unsafe_png(layout):
    layout.content["annotations"][0]["file_name"] = "/etc/7.png"
    layout.png.unlink()


def plant_blank(layout):
    layout.content["images"][0]["file_name"] = "my photo.jpg"
    layout.jpg.rename(layout.jpg.with_name("my photo.jpg"))


def plant_umlaut(layout):
    layout.content["annotations"][0]["file_name"] = "Bär.png"
    layout.png.rename(layout.png.with_name("Bär.png"))


def plant_backslash(layout):
    for path, entry in ((layout.jpg, layout.content["images"][0]), (layout.png, layout.content["annotations"][0])):
        (path.parent / "cam").mkdir()
        path.rename(path.parent / "cam" / path.name)
        entry["file_name"] = f"cam\\{path.name}"


def plant_ending(layout):
    layout.jpg.rename(layout.jpg.with_name("7.png"))


def plant_image_missing(layout):
    layout.jpg.unlink()


def plant_image_truncated(layout):
    data = layout.jpg.read_bytes()
    layout.jpg.write_bytes(data[: len(data) // 2])


def plant_image_text(layout):
    layout.jpg.write_text("<html>404</html>")


def plant_image_folder(layout):
    layout.jpg.unlink()
    layout.jpg.mkdir()


def plant_json_size(layout):
    layout.content["images"][0].update(width=4, height=6)


def plant_exif(layout):
    exif_jpeg(layout.jpg, 3)


def plant_exif_turned(layout):
    exif_jpeg(layout.jpg, 6, (4, 6))
    layout.content["images"][0].update(width=4, height=6)


def plant_png_missing(layout):
    layout.png.unlink()


def plant_png_truncated(layout):
    data = layout.png.read_bytes()
    layout.png.write_bytes(data[: len(data) * 2 // 3])


def plant_png_size(layout):
    layout.save_map(np.pad(ids_of(layout), ((0, 1), (0, 0))))


def small_ids(layout):
    """Renumber so that the ids fit one byte."""
    for new, old in enumerate((BALL, CUBE, CROWD, LAWN), start=1):
        repaint(layout, old, new)
        segment(layout, old)["id"] = new


def plant_png_grey(layout):
    small_ids(layout)
    write_pixels(layout.png, ids_of(layout).astype(np.uint8))


def plant_png_16_bit(layout):
    small_ids(layout)
    write_pixels(layout.png, ids_of(layout).astype(np.uint16))


def plant_png_palette(layout):
    small_ids(layout)
    picture = Image.fromarray(ids_of(layout).astype(np.uint8))
    picture = picture.convert("P")
    picture.putpalette([value for color in range(256) for value in (color, 255 - color, 7)])
    picture.save(layout.png)


def plant_png_rgba(layout):
    bgr = cv2.imread(str(layout.png))
    write_pixels(layout.png, np.concatenate([bgr, np.full((4, 6, 1), 255, np.uint8)], axis=2))


def plant_png_jpeg(layout):
    layout.png.write_bytes(cv2.imencode(".jpg", cv2.imread(str(layout.png)))[1].tobytes())


def plant_tiny(layout):
    ids = ids_of(layout)
    ids[0, 0] = 77
    layout.save_map(ids)
    segment(layout, BALL).update(area=3)
    layout.segments.append({"id": 77, "category_id": 5, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]})


def plant_void(layout):
    repaint(layout, LAWN, 0)
    layout.segments.remove(segment(layout, LAWN))


def plant_same_picture(layout):
    second_image(layout)
    layout.jpg.with_name("8.jpg").write_bytes(layout.jpg.read_bytes())


def plant_unlisted(layout):
    layout.jpg.with_name("forgotten.jpeg").write_bytes(b"x")


PLANTED_IN_FILES = [
    (plant_unsafe_image, {"file_name_unsafe"}, None),
    (plant_unsafe_png, {"file_name_unsafe"}, None),
    (plant_blank, {"file_name_unusual"}, None),
    (plant_umlaut, {"file_name_unusual"}, None),
    (plant_backslash, {"file_name_backslash"}, None),
    (plant_ending, {"image_ending"}, None),
    (plant_image_missing, {"image_missing"}, None),
    (plant_image_truncated, {"image_unreadable"}, None),
    (plant_image_text, {"image_unreadable"}, None),
    (plant_image_folder, {"image_missing"}, None),
    (plant_json_size, {"image_size"}, None),
    (plant_exif, {"exif_rotation"}, None),
    (plant_exif_turned, {"exif_rotation", "png_size"}, None),
    (plant_png_missing, {"png_missing"}, None),
    (plant_png_truncated, {"png_unreadable"}, None),
    (plant_png_size, {"png_size"}, None),
    (plant_png_grey, {"png_format"}, None),
    (plant_png_16_bit, {"png_format"}, None),
    (plant_png_palette, {"png_format"}, None),
    (plant_png_rgba, {"png_format"}, None),
    (plant_png_jpeg, {"png_format"}, None),
    (plant_void, {"void_share"}, None),
    (plant_same_picture, {"image_repeated"}, None),
    (plant_unlisted, {"file_unlisted"}, None),
]

"""Procedural scenes in COCO-panoptic form: the embedded data set of the demo and of the tests.

Things are told apart by their shape and stuff by its texture; every colour is random. Large stuff regions with soft borders lie
behind one to five things that may hide each other, but never so far that less than 45% of one is left. A few pictures
have a crowd (many tiny things as one segment) or a ribbon of void. A scene depends on (seed, split, index, size) only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import DataPaths, check_split_name, make_split, split_parts
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.data.scenes.painting import (
    RADII,
    SHAPES,
    TEXTURES,
    contrasting_color,
    curved_front,
    pixel_grid,
    random_color,
    random_color_pair,
    shape_area,
    shape_distance,
    texture,
)
from panoptic_detr.errors import DataError
from panoptic_detr.files import make_folder, staged_folder, write_json, write_whole
from panoptic_detr.images import encode_picture
from panoptic_detr.parallel import parallel_map
from panoptic_detr.segment_maps import measure, write_id_png

LARGEST_SIDE = 4096  # pixels; painting takes about a gigabyte there
SMALLEST_VISIBLE = 0.45  # of its own area; whatever would hide more of a segment is not placed
CROWD_SHARE, VOID_SHARE = 0.03, 0.05  # of the pictures
THING_COUNTS = (0.15, 0.25, 0.25, 0.2, 0.15)  # probabilities of 1..5 things
HALO = 0.06  # width of the shadow around a thing, as a fraction of the side

_COLORS = (
    (230, 83, 72),
    (74, 133, 236),
    (247, 191, 61),
    (168, 96, 220),
    (96, 168, 92),
    (74, 178, 190),
    (176, 186, 206),
    (172, 124, 84),
)


@dataclass(frozen=True)
class Scene:
    """One picture with its ground truth."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    segment_map: np.ndarray  # (size, size) int32; 0 is void, other values are the `id`s of `segments_info`
    segments_info: list[Entry]  # as in a COCO-panoptic JSON: id, category_id, iscrowd, area, bbox


@dataclass
class Canvas:
    """A scene being painted, back to front."""

    picture: np.ndarray  # (size, size, 3) float32 RGB in [0, 1]
    places: np.ndarray  # (size, size) uint8: 0 void, i + 1 the i-th segment
    categories: list[int] = field(default_factory=list)  # category id of each segment
    crowds: list[bool] = field(default_factory=list)  # iscrowd of each segment
    own_areas: list[float] = field(default_factory=list)  # pixels of each segment before anything hid it

    @property
    def size(self) -> int:
        """The side in pixels."""
        return len(self.places)

    def add(self, category_id: int, own_area: float, *, iscrowd: bool = False) -> int:
        """Register a segment; return its value in `places`."""
        self.categories.append(category_id)
        self.own_areas.append(own_area)
        self.crowds.append(iscrowd)
        return len(self.categories)


@dataclass(frozen=True)
class Thing:
    """A shape at its place: kind, centre, radius and angle in pixels and radians, colour."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    color: np.ndarray


def scene_categories() -> CategoryTable:
    """The classes of all scenes: things 1..4 by shape, stuff 5..8 by texture."""
    names = (*SHAPES, *TEXTURES)
    return CategoryTable.from_coco(
        {"id": i + 1, "name": name, "isthing": int(i < len(SHAPES)), "color": _COLORS[i]} for i, name in enumerate(names)
    )


def make_scene(index: int, *, seed: int = 0, size: int = 128, split: str = "train") -> Scene:
    """Paint one scene.

    Args:
        index: number of the scene; every scene has random numbers of its own, so any subset can be made in any order.
        seed: of the whole set, at least 0.
        size: side in pixels, 48 to 4096.
        split: scenes of different splits are different.

    Raises:
        DataError: size or seed out of range.
    """
    if not 48 <= size <= LARGEST_SIDE or seed < 0 or index < 0:
        raise DataError(
            f"scenes need size >= 48 and <= {LARGEST_SIDE}, seed >= 0 and index >= 0, but got size {size}, seed {seed}, "
            f"index {index}"
        )
    rng = np.random.default_rng([seed, crc32(split.encode()), index])
    canvas = paint_stuff(rng, size)
    if rng.random() < CROWD_SHARE:
        _paint_crowd(canvas, rng)
    for _ in range(1 + int(rng.choice(len(THING_COUNTS), p=THING_COUNTS))):
        _place_thing(canvas, rng)
    if rng.random() < VOID_SHARE:
        _paint_ribbon(canvas, rng)
    return describe(canvas)


def write_scenes(
    folder: str | Path, count: int, *, size: int = 128, seed: int = 0, split: str = "train", workers: int | None = None
) -> Path:
    """Write scenes as a COCO-panoptic data set.

    The layout is COCO's own: `<split>/000000.png`, `panoptic_<split>/000000.png`, `annotations/panoptic_<split>.json`. The set
    appears complete or not at all.

    Args:
        folder: root of the data set, made if missing.
        count: number of scenes.
        size: side in pixels.
        seed: of the whole set.
        split: name of the part, for example train or val.
        workers: processes, by default one per core; the result does not depend on it.

    Returns:
        The path of the JSON.

    Raises:
        DataError: the folder cannot be written to or holds this split already, or a number out of range.
    """
    images = ({"id": i, "file_name": f"{i:06d}.png", "width": size, "height": size} for i in range(count))

    def annotations(paths: DataPaths) -> Iterator[Entry]:
        write = partial(_write_scene, paths=paths, size=size, seed=seed, split=split)
        return parallel_map(write, range(count), workers=workers, description=f"scenes: {split}")

    return write_drawn(folder, split, images, annotations, f"procedural scenes, seed {seed}, split {split}", count=count)


def write_drawn(
    folder: str | Path,
    split: str,
    images: Iterable[Mapping[str, object]],
    annotations: Callable[[DataPaths], Iterator[Entry]],
    description: str,
    *,
    count: int,
) -> Path:
    """Write a part of a drawn data set, whole or not at all; returns the path of its JSON.

    Args:
        folder: root of the data set, made if missing.
        split: name of the part.
        images: entries of the JSON's `images`.
        annotations: writes the pictures and PNGs of a part that lies at the given paths, and gives the JSON's `annotations`.
        description: of the data set.
        count: how many scenes or films there are.

    Raises:
        DataError: the folder cannot be written to or holds this split already, or a count below 1.
    """
    if count < 1:
        raise DataError(f"count must be at least 1, but got {count}")
    check_split_name(split)
    parts = split_parts(split)
    with staged_folder(folder, parts) as staged:
        paths = make_split(staged, split)
        lists = {"images": images, "annotations": annotations(paths), "categories": scene_categories().to_coco()}
        with open(paths.annotations, "w", encoding="utf-8") as file:
            write_json(file, {"info": {"description": description, "version": "1.0"}}, lists)
    return Path(folder) / parts[-1]


def write_pictures(scene: Scene, paths: DataPaths, image_id: int, name: str) -> Entry:
    """Write image and PNG of one scene; return its entry for the JSON's `annotations`."""
    for folder in (paths.images, paths.panoptic):
        make_folder((folder / name).parent)
    write_whole(paths.images / name, encode_picture(scene.image, compression=1))
    write_id_png(paths.panoptic / name, scene.segment_map)
    return {"image_id": image_id, "file_name": name, "segments_info": scene.segments_info}


def _write_scene(index: int, *, paths: DataPaths, size: int, seed: int, split: str) -> Entry:
    return write_pictures(make_scene(index, seed=seed, size=size, split=split), paths, index, f"{index:06d}.png")


def paint_stuff(rng: np.random.Generator, size: int) -> Canvas:
    """Two or three large regions of different textures, each border soft in the picture and hard in the map."""
    first, *others = (int(i) for i in rng.permutation(len(TEXTURES))[: 2 + int(rng.random() < 0.5)])
    canvas = Canvas(_textured(rng, size, TEXTURES[first]), np.zeros((size, size), np.uint8))
    canvas.places[:] = canvas.add(first + 1 + len(SHAPES), size * size)
    for layer, kind in enumerate(others):
        front = curved_front(rng, size, rng.uniform(0.3, 0.6) if layer == 0 else rng.uniform(0.2, 0.35))
        inside = front < 0
        left = np.bincount(canvas.places[~inside], minlength=len(canvas.categories) + 1)[1:]
        if left.min() < 0.12 * size * size:
            continue  # it would leave a sliver of a region behind
        softness = np.float32(96 / (1.6 * size))
        opacity = np.clip(np.float32(0.5) - front * softness, 0, 1)[..., None]
        canvas.picture += opacity * (_textured(rng, size, TEXTURES[kind]) - canvas.picture)
        canvas.places[inside] = canvas.add(kind + 1 + len(SHAPES), 0.0)
    canvas.own_areas[:] = np.bincount(canvas.places.ravel())[1:].astype(float).tolist()
    return canvas


def _textured(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """A picture full of one texture: (size, size, 3) float32."""
    low, high = random_color_pair(rng)
    return low + texture(kind, rng, size)[..., None] * (high - low)


def _place_thing(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a thing at a place where nothing, itself included, gets hidden too far; after six tries, none."""
    number = int(rng.integers(len(SHAPES)))
    kind, color, size = SHAPES[number], random_color(rng), canvas.size
    for _ in range(6):
        radius = size * rng.uniform(*RADII[kind])
        x, y = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        thing = Thing(kind, x, y, radius, rng.uniform(0, 2 * np.pi), color)
        if _paint_thing(canvas, thing, number + 1):
            return


def _paint_thing(canvas: Canvas, thing: Thing, category_id: int) -> bool:
    """Paint a thing of its own segment if enough of all segments stays visible; say whether it was painted."""
    rows, columns, distance = patch(canvas.size, thing)
    places, inside = canvas.places[rows, columns], distance < 0
    own_areas = np.array([*canvas.own_areas, shape_area(thing.kind, thing.radius)])
    visible = np.bincount(canvas.places.ravel(), minlength=len(own_areas) + 1)[1:]
    visible -= np.bincount(places[inside], minlength=len(own_areas) + 1)[1:]
    visible[-1] = inside.sum()
    if (visible < SMALLEST_VISIBLE * own_areas).any():
        return False
    shade(canvas.picture[rows, columns], distance, thing, canvas.size)
    places[inside] = canvas.add(category_id, float(own_areas[-1]))
    return True


def patch(size: int, thing: Thing) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns around a thing, its halo included, and the distances there."""
    reach = thing.radius + HALO * size
    rows = slice(max(0, int(thing.y - reach)), min(size, int(thing.y + reach) + 1))
    columns = slice(max(0, int(thing.x - reach)), min(size, int(thing.x + reach) + 1))
    x, y = pixel_grid(size)
    dx, dy = x[:, columns] - np.float32(thing.x), y[rows] - np.float32(thing.y)
    return rows, columns, shape_distance(thing.kind, dx, dy, thing.radius, thing.angle)


def shade(picture: np.ndarray, distance: np.ndarray, thing: Thing, size: int) -> None:
    """Paint a thing into its patch: a shadow around it, light from the upper left, an antialiased outline inside its border."""
    line = max(1.0, size / 96)
    shadow = 1 - np.float32(0.4) * np.clip(1 - distance * np.float32(1 / (HALO * size)), 0, 1) ** 2
    light = np.linspace(1.15, 0.85, sum(distance.shape), dtype=np.float32)
    slope = light[: distance.shape[0], None] + light[None, : distance.shape[1]] - light[len(light) // 2]
    rim = np.clip(distance + np.float32(line + 0.5), 0, 1)[..., None]
    surface = thing.color * slope[..., None] * (1 - rim) + contrasting_color(thing.color) * rim
    opacity = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    picture *= shadow[..., None]
    picture += opacity * (surface - picture)


def _paint_crowd(canvas: Canvas, rng: np.random.Generator) -> None:
    """Many tiny things of one kind, too close to be told apart, as one segment."""
    number, size = int(rng.integers(len(SHAPES))), canvas.size
    centre = rng.uniform(0.25 * size, 0.75 * size, 2)
    place = canvas.add(number + 1, 0.0, iscrowd=True)
    color = random_color(rng)
    for offset in rng.uniform(-0.14 * size, 0.14 * size, (int(rng.integers(12, 20)), 2)):
        x, y = (centre + offset).tolist()
        radius = size * rng.uniform(0.035, 0.05) * RADII[SHAPES[number]][0] / 0.1
        thing = Thing(SHAPES[number], x, y, radius, rng.uniform(0, 2 * np.pi), color * np.float32(rng.uniform(0.85, 1.1)))
        rows, columns, distance = patch(size, thing)
        shade(canvas.picture[rows, columns], distance, thing, size)
        canvas.places[rows, columns][distance < 0] = place
    canvas.own_areas[-1] = float((canvas.places == place).sum())


def _paint_ribbon(canvas: Canvas, rng: np.random.Generator) -> None:
    """A thin plain band across the picture that belongs to no segment."""
    distance = np.abs(curved_front(rng, canvas.size, rng.uniform(0.2, 0.8))) - np.float32(
        canvas.size * rng.uniform(0.012, 0.02)
    )
    opacity = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    canvas.picture += opacity * (random_color(rng) - canvas.picture)
    canvas.places[distance < 0] = 0


def describe(canvas: Canvas) -> Scene:
    """The scene of a finished canvas; segments that are hidden are not listed.

    The id of the i-th segment has 8 (i + 1) in red, and green and blue of its class: ids of 24 bits, as COCO's are, and an
    annotation PNG that can be looked at.
    """
    colors = {category.id: category.color for category in scene_categories().categories}
    ids, segments, measures = [0], [], measure(canvas.places)
    for place, (category_id, crowd) in enumerate(zip(canvas.categories, canvas.crowds, strict=True), start=1):
        _, green, blue = colors[category_id]
        ids.append(8 * place + (green << 8) + (blue << 16))
        if place in measures:
            area, box = measures[place]
            row = {"id": ids[-1], "category_id": category_id, "iscrowd": int(crowd), "area": area, "bbox": list(box)}
            segments.append(row)
    image = np.rint(np.clip(canvas.picture, 0, 1) * 255).astype(np.uint8)
    return Scene(image, np.array(ids, np.int32)[canvas.places], segments)

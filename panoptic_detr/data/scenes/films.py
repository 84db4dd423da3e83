"""Moving scenes: things that drift, turn and pass in front of each other over still stuff, as a COCO-panoptic data set.

A thing keeps its segment id over the frames of its film, and has none where it is hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from zlib import crc32

import numpy as np

from panoptic_detr.data.coco import DataPaths
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.data.scenes.dataset import (
    LARGEST_SIDE,
    Canvas,
    Scene,
    Thing,
    describe,
    paint_stuff,
    patch,
    shade,
    write_drawn,
    write_pictures,
)
from panoptic_detr.data.scenes.painting import RADII, SHAPES, random_color, shape_area
from panoptic_detr.errors import DataError
from panoptic_detr.parallel import parallel_map

SPEEDS = (0.01, 0.03)  # of a thing, in sides of the picture per frame
TURN = 0.08  # largest turn of a thing, in radians per frame
THINGS = (2, 5)  # least and most in a film


@dataclass(frozen=True)
class _Mover:
    """A thing and how it moves: pixels and radians per frame. At the border it turns back."""

    start: Thing
    dx: float
    dy: float
    turn: float

    def at(self, frame: int, size: int) -> Thing:
        x, y = (_mirrored(at + frame * step, size) for at, step in ((self.start.x, self.dx), (self.start.y, self.dy)))
        return replace(self.start, x=x, y=y, angle=self.start.angle + frame * self.turn)


def make_film(index: int, *, frames: int, seed: int = 0, size: int = 128, split: str = "train") -> Iterator[Scene]:
    """Paint the frames of one film.

    Args:
        index: number of the film; every film has random numbers of its own.
        frames: how many, at least 1.
        seed: of the whole set, at least 0.
        size: side in pixels, at least 48.
        split: films of different splits are different.

    Raises:
        DataError: a number out of range.
    """
    if not 48 <= size <= LARGEST_SIDE or seed < 0 or index < 0 or frames < 1:
        raise DataError(
            f"films need size >= 48 and <= {LARGEST_SIDE}, seed >= 0, index >= 0 and a frame at least, but got size {size}, "
            f"seed {seed}, index {index}, {frames} frames"
        )
    rng = np.random.default_rng([seed, crc32(f"films of {split}".encode()), index])
    ground = paint_stuff(rng, size)
    movers = [_mover(rng, size) for _ in range(int(rng.integers(THINGS[0], THINGS[1] + 1)))]
    for frame in range(frames):
        canvas = Canvas(
            ground.picture.copy(), ground.places.copy(), [*ground.categories], [*ground.crowds], [*ground.own_areas]
        )
        for mover in movers:
            _paint(canvas, mover.at(frame, size))
        yield describe(canvas)


def write_films(
    folder: str | Path,
    count: int,
    *,
    frames: int,
    size: int = 128,
    seed: int = 0,
    split: str = "train",
    workers: int | None = None,
) -> Path:
    """Write films as a COCO-panoptic data set, as `write_scenes`; `<split>/0000/000000.png` is the first frame of the first.

    Args:
        folder: root of the data set, made if missing.
        count: number of films.
        frames: of each film.
        size: side in pixels.
        seed: of the whole set.
        split: name of the part.
        workers: processes, by default one per core.

    Returns:
        The path of the JSON.

    Raises:
        DataError: the folder cannot be written to or holds this split already, or a number out of range.
    """
    images = (
        {"id": film * frames + frame, "file_name": _name(film, frame), "width": size, "height": size}
        for film in range(count)
        for frame in range(frames)
    )

    def annotations(paths: DataPaths) -> Iterator[Entry]:
        write = partial(_write_film, paths=paths, frames=frames, size=size, seed=seed, split=split)
        films = parallel_map(write, range(count), workers=workers, description=f"films: {split}")
        return chain.from_iterable(films)

    description = f"procedural films of {frames} frames, seed {seed}, split {split}"
    return write_drawn(folder, split, images, annotations, description, count=count)


def _write_film(index: int, *, paths: DataPaths, frames: int, size: int, seed: int, split: str) -> list[Entry]:
    """Write the frames of a film; return their entries for the JSON's `annotations`."""
    scenes = make_film(index, frames=frames, seed=seed, size=size, split=split)
    return [write_pictures(scene, paths, index * frames + frame, _name(index, frame)) for frame, scene in enumerate(scenes)]


def _name(film: int, frame: int) -> str:
    return f"{film:04d}/{frame:06d}.png"


def _mover(rng: np.random.Generator, size: int) -> _Mover:
    kind, color = SHAPES[int(rng.integers(len(SHAPES)))], random_color(rng)
    x, y = rng.uniform(0.1 * size, 0.9 * size, 2).tolist()
    thing = Thing(kind, x, y, size * rng.uniform(*RADII[kind]), rng.uniform(0, 2 * np.pi), color)
    speed, course = size * rng.uniform(*SPEEDS), rng.uniform(0, 2 * np.pi)
    return _Mover(thing, speed * np.cos(course), speed * np.sin(course), rng.uniform(-TURN, TURN))


def _mirrored(position: float, size: int) -> float:
    """A position that turns back at the borders."""
    folded = position % (2 * size)
    return float(min(folded, 2 * size - folded))


def _paint(canvas: Canvas, thing: Thing) -> None:
    """Paint a thing as a segment of its own, in front of all before it."""
    rows, columns, distance = patch(canvas.size, thing)
    shade(canvas.picture[rows, columns], distance, thing, canvas.size)
    place = canvas.add(SHAPES.index(thing.kind) + 1, shape_area(thing.kind, thing.radius))
    canvas.places[rows, columns][distance < 0] = place

"""What procedural scenes are painted with: colours, textures of stuff, outlines of things. Pure functions on float32 arrays.

Sizes that should look the same at every picture size are fractions of the side; textures never get finer than 4 pixels.
"""

import colorsys
from functools import lru_cache

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
TEXTURES = ("stripes", "dots", "clouds", "grain")

# Corners, and the radius of the notch between two corners as a fraction of the radius of the corners.
_CORNERS = {"square": (4, np.cos(np.pi / 4)), "triangle": (3, np.cos(np.pi / 3)), "star": (5, 0.46)}

# Radius as a fraction of the side. Pointed shapes have less area for their radius, so their smallest ones are larger.
RADII = {"circle": (0.10, 0.18), "square": (0.12, 0.20), "triangle": (0.14, 0.21), "star": (0.15, 0.21)}


@lru_cache(maxsize=8)
def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres of a square picture: x (1, size) and y (size, 1), float32."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return centres[None, :], centres[:, None]


def random_color(rng: np.random.Generator) -> np.ndarray:
    """Any hue, neither grey nor glaring: (3,) float32 RGB in [0, 1]."""
    return _rgb(rng.random(), rng.uniform(0.25, 0.8), rng.uniform(0.3, 0.95))


def random_color_pair(rng: np.random.Generator) -> np.ndarray:
    """Two related colours of clearly different brightness, in random order: (2, 3) float32 RGB in [0, 1]."""
    hue, saturation, dark = rng.random(), rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.55)
    bright = dark + rng.uniform(0.3, 0.42)
    pair = np.stack([_rgb(hue, saturation, dark), _rgb(hue + rng.uniform(-0.08, 0.08), saturation * 0.8, bright)])
    return pair if rng.random() < 0.5 else pair[::-1]


def contrasting_color(color: np.ndarray) -> np.ndarray:
    """Near-black on bright colours and near-white on dark ones: (3,) float32."""
    brightness = float(color @ np.array([0.3, 0.59, 0.11], np.float32))
    return color * np.float32(0.12) if brightness > 0.45 else 1 - (1 - color) * np.float32(0.12)


def texture(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A random pattern of one kind that mixes two colours: (size, size) float32 in [0, 1]."""
    if kind == "clouds":
        return _smooth_noise(rng, size, cells=4)
    if kind == "grain":
        return _grain(rng, size)
    x, y = pixel_grid(size)
    turn = 2 * np.pi / max(4.0, size * rng.uniform(0.058, 0.1))  # radians per pixel
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    c, s = np.float32(turn * np.cos(angle)), np.float32(turn * np.sin(angle))
    along = np.sin(c * x + s * y + np.float32(phase[0]))
    if kind == "stripes":
        return np.clip(0.5 + 1.1 * along, 0, 1, dtype=np.float32)
    across = np.sin(c * y - s * x + np.float32(phase[1]))
    return np.clip(1.2 * (along + across) - 0.3, 0, 1, dtype=np.float32)  # discs on a square lattice


def curved_front(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """A wavy border through the picture with about `share` of the pixels on its inner side.

    Returns:
        (size, size) float32, about the signed distance to the border in pixels, negative inside.
    """
    x, y = pixel_grid(size)
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    waves = 2 * np.pi * rng.uniform(0.8, 1.8) / size
    height = size * rng.uniform(0.02, 0.06)
    front = c * x + s * y + np.float32(height) * np.sin(np.float32(waves) * (c * y - s * x) + np.float32(phase))
    return front - np.quantile(front[::4, ::4], share).astype(np.float32)


def shape_distance(kind: str, x: np.ndarray, y: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape around the origin, negative inside: (H, W) float32.

    Polygons are folded into one half of one corner by their symmetry, where a single straight edge remains; the distance is
    exact near the edges, which is where outlines and antialiasing look at it.

    Args:
        kind: one of SHAPES.
        x: (1, W) and y: (H, 1) offsets from the centre in pixels.
        y: see x.
        radius: of the circle, or of the corners, in pixels.
        angle: rotation in radians.
    """
    distance = np.sqrt(x * x + y * y)
    if kind == "circle":
        return distance - np.float32(radius)
    corners, notch = _CORNERS[kind]
    sector = 2 * np.pi / corners
    turned = (np.arctan2(y, x) - np.float32(angle)) % np.float32(sector)
    folded = np.abs(turned - np.float32(sector / 2))  # 0 at the notch, sector / 2 at the corner
    inner = radius * notch
    tip_x, tip_y = radius * np.cos(sector / 2), radius * np.sin(sector / 2)
    edge = np.hypot(tip_x - inner, tip_y)
    normal_x, normal_y = np.float32(tip_y / edge), np.float32((inner - tip_x) / edge)
    edge_distance = distance * (np.cos(folded) * normal_x + np.sin(folded) * normal_y) - np.float32(inner) * normal_x
    return np.maximum(edge_distance, distance - np.float32(radius))  # beyond the corners the edge's line says too little


def shape_area(kind: str, radius: float) -> float:
    """Area of a shape in square pixels."""
    if kind == "circle":
        return float(np.pi * radius**2)
    corners, notch = _CORNERS[kind]
    return float(corners * notch * np.sin(np.pi / corners) * radius**2)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0)), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise without detail, stretched to [0, 1]: (size, size) float32."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    noise = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    low, high = float(noise.min()), float(noise.max())
    return (noise - np.float32(low)) * np.float32(1 / max(high - low, 1e-3))


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Independent speckles, one pixel wide at 96 pixels and larger in larger pictures: (size, size) float32 in [0, 1]."""
    cells = round(size / max(1.0, size / 96))
    speckles = rng.random((cells, cells), dtype=np.float32)
    return speckles if cells == size else cv2.resize(speckles, (size, size), interpolation=cv2.INTER_LINEAR)

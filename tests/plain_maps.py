"""Areas and boxes of an id map by the plain computation, to compare with."""

import numpy as np


def areas(segment_map):
    """Pixels of every id in the map, 0 included if it occurs."""
    return {int(i): int((segment_map == i).sum()) for i in np.unique(segment_map)}


def boxes_of(segment_map):
    """Tight (left, top, width, height) of every id but 0."""
    pixels = {int(i): np.nonzero(segment_map == i) for i in np.unique(segment_map) if i}
    return {i: (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1) for i, (y, x) in pixels.items()}

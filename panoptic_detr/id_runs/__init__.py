"""Id PNGs as runs of equal ids without painting a pixel, and what scoring counts in maps, compiled (the extra fast-pq)."""

from panoptic_detr.id_runs.reader import (
    IdRuns,
    Names,
    RunReader,
    are_kernels_loaded,
    can_read_runs,
    count_marks,
    join_maps,
    join_runs,
)

__all__ = ["IdRuns", "Names", "RunReader", "are_kernels_loaded", "can_read_runs", "count_marks", "join_maps", "join_runs"]

"""Id PNGs as runs of equal ids, which is what scoring needs of them, without painting a pixel."""

from panoptic_detr.id_runs.reader import IdRuns, RunReader, are_runs_loaded, can_read_runs, join_maps, join_runs

__all__ = ["IdRuns", "RunReader", "are_runs_loaded", "can_read_runs", "join_maps", "join_runs"]

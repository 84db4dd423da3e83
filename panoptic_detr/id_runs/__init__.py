"""Id PNGs as runs of equal ids, which is what scoring needs of them, without painting a pixel."""

from panoptic_detr.id_runs.reader import COMPILED, IdRuns, RunReader, join_runs

__all__ = ["COMPILED", "IdRuns", "RunReader", "join_runs"]

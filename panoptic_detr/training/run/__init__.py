"""A run's folder: checkpoints, log, record, state."""

__all__ = ["folder", "log", "state"]

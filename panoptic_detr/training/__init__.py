"""Training of both stages."""

__all__ = ["losses", "optimizer", "processes", "stages", "step", "trainer"]

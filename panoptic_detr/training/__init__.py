"""Training of both stages."""

__all__ = ["losses", "optimizer", "processes", "seeds", "stages", "step", "trainer"]

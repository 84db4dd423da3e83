"""Training of both stages."""

__all__ = ["build", "build_data", "losses", "optimizer", "run", "step", "trainer", "watch"]

"""What is said about a run: progress, validation, diagnosis, curves, failures."""

__all__ = ["curves", "diagnosis", "failures", "progress", "reporting", "sanity", "validation"]

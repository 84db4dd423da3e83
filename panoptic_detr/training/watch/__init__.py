"""What is said about a run: progress, validation, diagnosis, a look at its samples."""

__all__ = ["diagnosis", "forecast", "progress", "range_test", "sanity", "validation"]

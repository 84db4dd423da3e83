"""Pictures of predictions, attention and queries, and the report."""

__all__ = ["attention", "draw", "errors", "explain", "fiftyone", "queries", "report"]

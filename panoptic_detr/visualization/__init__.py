"""Pictures of predictions, attention and queries, and the report."""

__all__ = ["attention", "draw", "errors", "explain", "queries", "report"]

"""Pictures of predictions, attention and queries, and the report."""

__all__ = ["attention", "attention_pictures", "draw", "entry", "errors", "explain", "queries", "report", "sweep"]

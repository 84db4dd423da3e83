"""Pictures of predictions, attention and queries."""

"""Time and memory by parts; runs from a checkout."""

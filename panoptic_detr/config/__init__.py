"""Settings as dataclasses, and reading them from YAML and the command line."""

__all__ = ["inference", "losses", "reading", "stages", "types"]

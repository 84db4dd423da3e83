"""What only makes CPUs faster: folding, fusing, cheap dropout."""

__all__ = ["dropout", "optimize"]

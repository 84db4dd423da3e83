"""One module per job, each with `main(argv)`."""

__all__ = ["cli"]

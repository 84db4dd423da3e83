"""One short script per job; each has `main(argv=None)`."""

"""One part of the measurement as a program of its own (`parts.main`)."""

import sys

from tools.benchmarks.gpu.parts import main

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

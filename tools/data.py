"""Scenes, checks, converters; `python tools/data.py --help` is `panoptic-detr data --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))

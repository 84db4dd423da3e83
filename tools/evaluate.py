"""Panoptic quality and AP; `python tools/evaluate.py --help` is `panoptic-detr evaluate --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

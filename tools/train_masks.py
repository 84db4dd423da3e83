"""Stage 2: the mask head on a frozen detector; `python tools/train_masks.py --help` is `panoptic-detr train_masks --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train_masks", *sys.argv[1:]]))

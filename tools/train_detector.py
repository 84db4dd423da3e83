"""Stage 1: a detector on boxes around things and stuff; `panoptic-detr train_detector`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train_detector", *sys.argv[1:]]))

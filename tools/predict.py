"""Images to panoptic maps; `python tools/predict.py --help` is `panoptic-detr predict --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))

"""The whole job on drawn scenes; `python tools/demo.py --help` is `panoptic-detr demo --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))

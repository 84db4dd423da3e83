"""One file from pixels to the panoptic map; `python tools/export.py --help` is `panoptic-detr export --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))

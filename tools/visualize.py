"""Pictures, attention, the HTML report; `python tools/visualize.py --help` is `panoptic-detr visualize --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))

"""Both stages on one's own data, with scores and a report; `python tools/train.py --help` is `panoptic-detr train --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

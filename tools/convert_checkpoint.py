"""Published weights and ours; `python tools/convert_checkpoint.py --help` is `panoptic-detr convert_checkpoint --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert_checkpoint", *sys.argv[1:]]))

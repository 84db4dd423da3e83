"""The settings that come with the package; `python tools/configs.py --help` is `panoptic-detr configs --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["configs", *sys.argv[1:]]))

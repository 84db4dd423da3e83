"""Every job; `python tools/cli.py --help` is `panoptic-detr --help`."""

import sys

from panoptic_detr.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())

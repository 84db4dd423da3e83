"""Scenes, checks, converters; `python tools/data.py --help` is `panoptic-detr data --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

"""Panoptic quality and AP; `python tools/evaluate.py --help` is `panoptic-detr evaluate --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

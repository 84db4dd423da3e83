"""Stage 2: the mask head on a frozen detector; `python tools/train_masks.py --help` is `panoptic-detr train_masks --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

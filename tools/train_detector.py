"""Stage 1: a detector on boxes around things and stuff; `panoptic-detr train_detector`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

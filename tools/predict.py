"""Images to panoptic maps; `python tools/predict.py --help` is `panoptic-detr predict --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

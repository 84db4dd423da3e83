"""Published weights and ours; `python tools/convert_checkpoint.py --help` is `panoptic-detr convert_checkpoint --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

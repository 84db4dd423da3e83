"""The settings that come with the package; `python tools/configs.py --help` is `panoptic-detr configs --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

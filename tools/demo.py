"""The whole job on drawn scenes; `python tools/demo.py --help` is `panoptic-detr demo --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

"""Pictures, attention, the HTML report; `python tools/visualize.py --help` is `panoptic-detr visualize --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

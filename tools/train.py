"""Both stages on one's own data, with scores and a report; `python tools/train.py --help` is `panoptic-detr train --help`."""

from panoptic_detr.commands.cli import main_of_script

if __name__ == "__main__":
    main_of_script(__file__)

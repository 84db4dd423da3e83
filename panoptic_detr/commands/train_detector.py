"""Train a detector on boxes around things and stuff (stage 1).

A small one in under a minute on a CPU:

    panoptic-detr data scenes scenes --count 200 --size 96
    panoptic-detr train_detector --config configs/scenes/detector.yaml --data.root scenes --train.steps 50

The paper's: panoptic-detr train_detector --config configs/coco/detr_r50_boxes.yaml --data.root coco --train.output runs/boxes
Every setting of the YAML can be given on the command line; `--train.resume true` goes on with a run that was stopped;
`--dry-run` says what the run will need in time and memory, and stops there.
"""

import sys
from collections.abc import Sequence

from panoptic_detr.commands.arguments import spelled_out
from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import read_config_or_exit
from panoptic_detr.config.stages import DetectorStage
from panoptic_detr.training.stages import train_detector


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings, train, save."""
    arguments = spelled_out(sys.argv[1:] if argv is None else argv)
    train_detector(
        read_config_or_exit(DetectorStage, arguments, prog="panoptic-detr train_detector", description=__doc__ or "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, None, "train_detector"))

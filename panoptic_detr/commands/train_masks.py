"""Train the mask head of a panoptic model on a frozen detector (stage 2), or with it (`--joint`).

After a small run of train_detector, in under a minute on a CPU:

    panoptic-detr train_masks --config configs/scenes/masks.yaml --detector runs/scenes_detector/best.pt \
        --data.root scenes --train.steps 50

The paper's: panoptic-detr train_masks --config configs/coco/detr_r50_masks.yaml --detector runs/boxes/best.pt --data.root coco
The model is the panoptic one of the checkpoint's detector. PQ on the validation set is printed as training goes on.
`--dry-run` says what the run will need in time and memory, and stops there.
"""

import sys
from collections.abc import Sequence

from panoptic_detr.commands.arguments import spelled_out
from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import read_config_or_exit
from panoptic_detr.config.stages import MaskStage
from panoptic_detr.training.stages import train_masks


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings, train, save."""
    arguments = spelled_out(sys.argv[1:] if argv is None else argv)
    train_masks(read_config_or_exit(MaskStage, arguments, prog="panoptic-detr train_masks", description=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(run(main, None, "train_masks"))

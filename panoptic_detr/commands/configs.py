"""List the settings that come with the package: what `--config NAME` takes from any folder.

panoptic-detr configs
panoptic-detr train_detector --config finetune/small_boxes --data.root data/mine
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import packaged_configs


def main(argv: Sequence[str] | None = None) -> int:
    """Print every name with the first line of its file."""
    parser = argparse.ArgumentParser("panoptic-detr configs", description=(__doc__ or "").splitlines()[0])
    parser.parse_args(argv)
    found = packaged_configs()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:<{width}}  {first_line(path)}")
    return 0


def first_line(path: Path) -> str:
    """The first sentence of a file's opening comment."""
    text = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\n#\n")[0].splitlines())
    return text.partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(run(main, None, "configs"))

"""The folder of a run: `last.pt` to go on from, some older ones as asked, `best.pt` to use."""

import os
from dataclasses import replace
from pathlib import Path

from panoptic_detr.errors import CheckpointError
from panoptic_detr.files import sync_folder
from panoptic_detr.weights import Checkpoint, load_checkpoint, save_checkpoint


class RunFiles:
    """Checkpoints in a run's folder.

    Args:
        folder: of the run.
        keep_last: how many checkpoints to keep; if more than one, each as `step_<n>.pt`, the newest also as `last.pt`.
    """

    def __init__(self, folder: Path, keep_last: int = 1) -> None:
        self.folder = folder
        self.keep_last = keep_last

    @property
    def last(self) -> Path:
        """The newest checkpoint, with everything that a resume needs."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best score, for use: without the training part."""
        return self.folder / "best.pt"

    def save_last(self, checkpoint: Checkpoint, step: int) -> None:
        """Write `last.pt`; there is a complete one at every moment. Older ones go when there are too many."""
        if self.keep_last == 1:
            save_checkpoint(self.last, checkpoint)
            return
        kept = save_checkpoint(self.folder / f"step_{step:08d}.pt", checkpoint)
        temporary = self.folder / ".last.pt.link"
        temporary.unlink(missing_ok=True)
        try:
            os.link(kept, temporary)
            os.replace(temporary, self.last)
            sync_folder(self.folder)
        except OSError:  # a file system without hard links
            save_checkpoint(self.last, checkpoint)
        for path in sorted(self.folder.glob("step_*.pt"))[: -self.keep_last]:
            path.unlink()

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write `best.pt`."""
        save_checkpoint(self.best, replace(checkpoint, training=None))

    def load_last(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            CheckpointError: the file is damaged or was made for use, not for going on.
        """
        if not self.last.exists():
            return None
        checkpoint = load_checkpoint(self.last)
        if checkpoint.training is None:
            raise CheckpointError(f"{str(self.last)!r} has no training part to go on from; it was exported for use")
        return checkpoint

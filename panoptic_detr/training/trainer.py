"""The trainer of every detector and stage: accumulate, clip, step, log, evaluate, save, stop in good order, go on exactly."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from panoptic_detr.config.stages import OptimizerConfig, TrainConfig
from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.signals import StopRequest
from panoptic_detr.structures import Batch
from panoptic_detr.training.losses import Criterion, MaskCriterion
from panoptic_detr.training.optimizer import AveragedWeights, build_optimizer, parameter_groups, rate_factor, set_rates
from panoptic_detr.training.processes import any_process, gather, share_buffers, whole, whole_modules
from panoptic_detr.training.run.folder import RunFiles
from panoptic_detr.training.run.state import RunState, changed_settings, restore_snapshot, take_snapshot
from panoptic_detr.training.step import TrainingStep, Work, freeze, remember_statistics, set_train_mode
from panoptic_detr.training.stopping import describe_nonfinite, explained_worker_death, save_batch
from panoptic_detr.training.watch.diagnosis import VITAL_SIGNS
from panoptic_detr.training.watch.progress import Reporter, Scores
from panoptic_detr.weights import Checkpoint

Evaluate = Callable[[nn.Module], Mapping[str, float]]
DrawSamples = Callable[[nn.Module], Mapping[str, np.ndarray]]

MOST_OVERFLOWS = 50  # steps in a row; each halves the loss scale of fp16, which has 2^16 to lose


class Loader(Protocol):
    """Batches of an epoch, from any batch on. Making them must not draw from the global random generators."""

    def __len__(self) -> int:
        """Batches of an epoch in this process."""

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch from the position that was set."""

    def set_position(self, epoch: int, batch: int) -> None:
        """Make the next iteration start with this batch of this epoch."""


class Trainer:
    """One run.

    Args:
        fabric: launched; says devices, processes and precision.
        model: what to train; its device is the fabric's afterwards.
        criterion: its losses.
        loader: of training batches.
        optimizer: settings of AdamW and schedule.
        train: length, pace and bookkeeping.
        template: what checkpoints say besides weights: model spec, categories, inference settings.
        settings: the whole configuration as plain values, for the checkpoint.
        frozen: parts that stay as they are, in evaluation mode and without gradients.
        evaluate: scores of the model by name, the same in every process; the first decides which checkpoint is the best.
        draw_samples: pictures (H, W, 3) by name of the model's predictions, for TensorBoard at every evaluation.
        resume_command: what to tell a user who stopped the run.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        criterion: Criterion | MaskCriterion,
        loader: Loader,
        *,
        optimizer: OptimizerConfig,
        train: TrainConfig,
        template: Checkpoint,
        settings: Mapping[str, object] | None = None,
        frozen: Sequence[nn.Module] = (),
        evaluate: Evaluate | None = None,
        draw_samples: DrawSamples | None = None,
        resume_command: str = "",
    ) -> None:
        freeze(frozen)
        self.fabric, self.model, self.criterion, self.loader = fabric, model, criterion, loader
        self.rates, self.config, self.template, self.settings = optimizer, train, template, dict(settings or {})
        self.frozen, self.evaluate, self.resume_command = tuple(frozen), evaluate, resume_command
        self.draw_samples = draw_samples
        self.step_module = fabric.setup_module(TrainingStep(model, criterion).to(fabric.device))
        self.groups = parameter_groups(model, optimizer)
        adamw = build_optimizer(self.groups, optimizer, loss_scaling=train.precision == "16-mixed")
        self.optimizer: Any = fabric.setup_optimizers(adamw)
        self.ema = AveragedWeights(model, train.ema_decay) if train.ema_decay else None
        self.state, self.resumed = RunState(), False
        self.stopped = self._looked_for_last = False
        self.files = RunFiles(train.output, train.keep_last)
        steps_per_epoch = math.ceil(len(loader) / train.accumulate)
        self.total_steps = train.steps if train.steps is not None else train.epochs * steps_per_epoch
        self.drop_unit = 1 if train.steps is not None else steps_per_epoch
        self.reporter = Reporter(fabric, train, self.total_steps)
        self.last_scores: dict[str, float] = {}
        self._waited, self._overflows, self._saved = 0.0, 0, (-1, -1)

    def fit(self) -> RunState:
        """Train until the end, a stop request or an early stop; save; return the final counters.

        Raises:
            TrainingError: non-finite values where `on_nonfinite` says stop, or too many skipped steps.
            CheckpointError: `last.pt` cannot be read, or cannot be written where `on_disk_full` says stop.
        """
        self.resume()
        self.reporter.open(self.state)
        set_train_mode(self.model, self.frozen)
        with StopRequest() as stop, self.reporter, explained_worker_death():
            self._evaluate_if_due()  # a run that was killed in an evaluation has yet to do it
            while not self._finished(stop):
                self._epoch(stop)
            self._close(stop)
        self.stopped = bool(stop)
        return self.state

    def _epoch(self, stop: StopRequest) -> None:
        """The rest of the current pass over the data, or less if the run ends."""
        for group in self._groups():
            started = time.perf_counter()
            losses = self._step(group)
            self.state.batch += len(group)
            self.reporter.step(
                self.state,
                losses,
                rate=self.optimizer.param_groups[-1]["lr"],
                images=sum(len(batch) for batch in group),
                seconds=time.perf_counter() - started,
                waited=self._waited,
            )
            if self._checkpoint_due():
                self._save()
            self._evaluate_if_due()
            if self._finished(stop):
                return
        self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def batches(self) -> Iterator[list[Batch]]:
        """Batches of one optimizer step at a time, epoch after epoch without end, for tests of settings before a run."""
        for epoch in itertools.count():
            self.loader.set_position(epoch, 0)
            batches = iter(self.loader)
            while group := list(itertools.islice(batches, self.config.accumulate)):
                yield group

    def _groups(self) -> Iterator[list[Batch]]:
        """Batches of one optimizer step at a time, from the current position of the current epoch."""
        self.loader.set_position(self.state.epoch, self.state.batch)
        batches = iter(self.loader)
        while True:
            started = time.perf_counter()
            group = list(itertools.islice(batches, self.config.accumulate))
            self._waited = time.perf_counter() - started
            if not group:
                return
            yield group

    def _step(self, group: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step over the accumulated batches; their losses by name."""
        set_rates(self.optimizer, rate_factor(self.state.step, self.total_steps, self.drop_unit, self.rates))
        self.criterion.progress = self.state.step / self.total_steps
        restore_statistics = remember_statistics(self.model)
        values = self.gradients(group)
        if self._is_usable(values, group):
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model)
        else:
            restore_statistics()
            self._update_loss_scale()
        self.optimizer.zero_grad()
        self.state.step += 1
        return values

    def gradients(self, group: Sequence[Batch]) -> dict[str, float]:
        """Forward and backward pass over the batches of one optimizer step, gradients clipped; their losses by name."""
        counts = self.criterion.counts([target for batch in group for target in batch.targets])
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(group):
            with self._gradients_synced(index == len(group) - 1):
                losses = self.step_module(Work(batch.to(self.fabric.device), counts))
                self.fabric.backward(losses["loss"])
            sums = {name: value.detach() + sums.get(name, 0) for name, value in losses.items()}
        for name in VITAL_SIGNS:
            sums[name] /= len(group)
        norm: Any = self.fabric.clip_gradients(
            self.step_module, self.optimizer, max_norm=self.rates.clip_norm or math.inf, error_if_nonfinite=False
        )
        return dict(zip([*sums, "gradient_norm"], torch.stack([*sums.values(), whole(norm)]).tolist(), strict=True))

    def try_step(self, group: Sequence[Batch]) -> dict[str, float]:
        """A step for tests of settings before a run: it is in no log, and left out where it is not finite; its losses."""
        values = self.gradients(group)
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return values

    def _gradients_synced(self, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once per optimizer step, in its last backward pass."""
        if last or self.fabric.world_size == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(self.step_module)

    def _update_loss_scale(self) -> None:
        """With fp16, close a step that is left out: its gradients are unscaled, and the scaler takes that once per update."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            scaler.update()

    def _is_usable(self, values: Mapping[str, float], group: Sequence[Batch]) -> bool:
        """Whether the step may change the weights.

        Processes decide together, because one process's NaN is in everyone's averaged gradients. With fp16 a few infinite
        gradients are ordinary (the loss scale is searched that way). The first bad batch is kept.
        """
        bad_loss, bad_norm = (not math.isfinite(values[name]) for name in ("loss", "gradient_norm"))
        self._overflows = self._overflows + 1 if bad_norm else 0
        searching = self.config.precision == "16-mixed" and self._overflows <= MOST_OVERFLOWS
        if not self._agree(bad_loss or (bad_norm and not searching)):
            return True
        self.state.skipped += 1
        only_gradients = not self._agree(bad_loss)
        message = self._explain(values, group, concerned=bad_loss or only_gradients)
        if self.config.precision == "16-mixed" and only_gradients:
            message += f"; fp16 overflows in {self._overflows} steps in a row: use train.precision bf16-mixed or 32-true"
        if self.config.on_nonfinite == "stop":
            raise TrainingError(message + "; train.on_nonfinite=skip leaves such steps out")
        if self.state.skipped > self.config.max_skipped:
            raise TrainingError(f"{message}; more than {self.config.max_skipped} steps were skipped (train.max_skipped)")
        self.reporter.say(f"skipped: {message}")
        return False

    def _explain(self, values: Mapping[str, float], group: Sequence[Batch], concerned: bool) -> str:
        """What the processes that are concerned say about a bad step; each keeps its batch of the first one."""
        keeps = concerned and (self.config.on_nonfinite == "stop" or self.state.skipped == 1)
        saved = save_batch(group, self.config.output, self.state.step, self.fabric.global_rank) if keeps else None
        own = describe_nonfinite(self.state.step, values, group, saved) if concerned else None
        return "; ".join(text for text in gather(self.fabric, own) if text)

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every
        return bool(every) and self.state.step % every == 0

    def _evaluate_if_due(self) -> None:
        """Score the model where the settings say so, once per step.

        An evaluation may take long: the step is saved before it, so that a run that is killed meanwhile loses nothing.
        """
        every, step = self.config.evaluate_every, self.state.step
        due = step == self.total_steps or (every and step % every == 0)
        if self.evaluate is None or not due or step in (0, self.state.evaluated):
            return
        self._save()
        self._score(self.evaluate)
        self._save()

    def _score(self, evaluate: Evaluate) -> None:
        """Evaluate (with averaged weights, where there are some), and keep the model if it is the best so far."""
        with self.reporter.progress.paused(), self._weights_for_use(), whole_modules(self.step_module):
            self.model.eval()
            with torch.no_grad():
                found = evaluate(self.model)
                self.last_scores = scores = dict(found)
            if self.reporter.wants_pictures and self.draw_samples is not None:
                self.reporter.pictures(self.state, self.draw_samples(self.model))
            value = next(iter(scores.values()))
            best = -math.inf if self.state.best is None else self.state.best
            improved = value > best
            if not math.isnan(value):  # an undefined score says nothing, so nothing is decided by it
                self.state.evaluations_since_best = 0 if improved else self.state.evaluations_since_best + 1
            if value >= best and self._export():  # of equal scores (0 for long) the later weights; an undefined one is none
                self.state.best = value
        self.state.evaluated = self.state.step
        set_train_mode(self.model, self.frozen)
        self.reporter.scores(self.state, scores, improved)
        self.reporter.tables(self.state, found if isinstance(found, Scores) else Scores())

    def _finished(self, stop: StopRequest) -> bool:
        return self.complete or self._agree(bool(stop))

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end: all steps are done, or the scores have stopped improving."""
        early, since_best = self.config.early_stop, self.state.evaluations_since_best
        return self.state.step >= self.total_steps or bool(early and since_best >= early)

    def _agree(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return any_process(self.fabric, flag)

    def _close(self, stop: StopRequest) -> None:
        """Leave a complete run folder behind."""
        self._save()
        if self._agree(bool(stop)) and not self.complete:
            by = stop.received or "another process"
            self.reporter.say(f"stopped by {by} after step {self.state.step}; go on with: {self.resume_command}")
        else:
            if self.state.step < self.total_steps:
                since_best = self.state.evaluations_since_best
                self.reporter.say(
                    f"stopped early after step {self.state.step}: {since_best} evaluations without a better score"
                )
            if self.evaluate is None or self.state.best is None or not gather(self.fabric, self.files.best.exists())[0]:
                with self._weights_for_use():
                    self._export()
        self.reporter.close()

    @contextmanager
    def _weights_for_use(self) -> Iterator[None]:
        """The model as it is evaluated and exported: averaged weights, where there are some, and the same in every process."""
        with nullcontext() if self.ema is None else self.ema.applied(self.model):
            share_buffers(self.fabric, self.model)
            yield

    def _export(self) -> bool:
        """Write the weights in use now as `best.pt`; whether that was possible."""
        checkpoint = replace(self.template, state_dict=whole(self.model.state_dict()))
        return self._write(lambda: self.files.save_best(checkpoint))

    def _save(self) -> None:
        """Write `last.pt`: weights, and everything that a resume needs; not again if nothing has happened since."""
        if self._saved == (self.state.step, self.state.evaluated):
            return
        training = take_snapshot(self.fabric, self.model, self.optimizer, self.ema, self.state, self.settings)
        with self._weights_for_use():
            checkpoint = replace(self.template, state_dict=whole(self.model.state_dict()), training=training.to_dict())
            if self._write(lambda: self.files.save_last(checkpoint, self.state.step)):
                self._saved = (self.state.step, self.state.evaluated)

    def _write(self, write: Callable[[], None]) -> bool:
        """Let the first process write, and say whether it could; if not, all go on or stop together."""
        failure = None
        if self.fabric.is_global_zero:
            try:
                write()
            except (CheckpointError, OSError) as error:
                failure = str(error)
        failure = gather(self.fabric, failure)[0]
        if failure and self.config.on_disk_full == "stop":
            raise CheckpointError(f"{failure}; make room, then go on (--train.resume true), or set train.on_disk_full: go_on")
        if failure:
            self.reporter.say(f"{failure}; training goes on (train.on_disk_full=go_on)")
        return not failure

    def resume(self) -> None:
        """Go on from `last.pt`, if `train.resume` says so and there is one; `fit` does it where it was not done before.

        Raises:
            CheckpointError: the file cannot be read, or does not belong to this model, its classes or number of processes.
        """
        if not self.config.resume or self._looked_for_last:
            return
        self._looked_for_last = True
        checkpoint = self.files.load_last()
        if checkpoint is None:
            self.reporter.say(f"there is no {str(self.files.last)!r} to go on from: the run starts at its first step")
            return
        if self.template.categories is not None:
            checkpoint.check_categories(self.template.categories)
        part = restore_snapshot(checkpoint, self.fabric, self.model, self.optimizer, self.ema)
        self.state, self.resumed = part.state, True
        self.reporter.say(f"going on after step {self.state.step} of {self.total_steps}")
        if self.complete:
            early = "it stopped early, and goes on without train.early_stop"
            more = "it goes on with more steps only (--train.steps or --train.epochs)"
            self.reporter.say(f"the run is complete; {more if self.state.step >= self.total_steps else early}")
        for change in changed_settings(part.settings, self.settings):
            self.reporter.say(f"changed setting, so the run is not an exact continuation: {change}")

"""The two stages, each from its settings to a finished run: a detector on boxes, and a mask head on the frozen detector."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.reading import plain
from panoptic_detr.config.stages import DetectorStage, MaskStage, ModelConfig, OptimizerConfig
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import CheckpointError, ConfigError, InputError, TrainingError
from panoptic_detr.models import PanopticDETR
from panoptic_detr.models.masks import MaskDETR
from panoptic_detr.training.build_data import open_train_set, open_val_set, train_loader, validates_on_training
from panoptic_detr.training.losses import Criterion, MaskCriterion, criterion_for
from panoptic_detr.training.optimizer import freeze_groups_at_rest
from panoptic_detr.training.processes import gather, start_fabric
from panoptic_detr.training.run.folder import check_run_folder, only_run_in, write_record
from panoptic_detr.training.run.log import draw_curves, loss_curve
from panoptic_detr.training.seeds import parts_of, train_seeds
from panoptic_detr.training.step import recompute_layers, use_channels_last
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.watch.diagnosis import learning_verdict, overfit_verdict
from panoptic_detr.training.watch.forecast import FEWEST_STEPS, forecast
from panoptic_detr.training.watch.progress import rank_zero_console
from panoptic_detr.training.watch.range_test import range_test
from panoptic_detr.training.watch.sanity import inspect_samples, print_groups
from panoptic_detr.training.watch.validation import evaluator, sample_drawer
from panoptic_detr.weights import (
    Checkpoint,
    check_mask_settings,
    check_source,
    copy_mask_head,
    detector_changes,
    load_checkpoint,
    open_source,
    save_checkpoint,
    transfer_weights,
)
from panoptic_detr.zoo import PANOPTIC, build_model, override_types, spec_of

Stage = TypeVar("Stage", bound=DetectorStage)


def train_detector(stage: DetectorStage) -> Path | None:
    """Run stage 1 with these settings.

    Returns:
        The result, `best.pt` in the run's folder; None if a signal came, be it in the last step (`train.resume` goes on).

    Raises:
        InputError: settings, data, weights or folder that cannot be used.
    """
    _check_stage(stage, DetectorStage)
    if stage.model.weights is not None:
        check_source(stage.model.weights)
    return run_stage(stage, lambda part, categories, console: new_model(part.model, categories, console))


def train_masks(stage: MaskStage) -> Path | None:
    """Run stage 2 with these settings.

    Returns:
        The result, `best.pt` in the run's folder; None if a signal came, be it in the last step (`train.resume` goes on).

    Raises:
        InputError: settings, data, weights or folder that cannot be used.
    """
    _check_stage(stage, MaskStage)
    if stage.detector is None:
        raise ConfigError("stage 2 starts from a detector: give --detector CHECKPOINT, a file of train_detector (best.pt)")
    for source in dict.fromkeys([*(part.detector for part in parts_of(stage)), stage.model.weights]):
        if source is not None:
            check_source(source)
    return run_stage(stage, _panoptic_of, frozen_detector=not stage.joint)


def _check_stage(stage: object, kind: type) -> None:
    if not isinstance(stage, kind):
        raise ConfigError(
            f"a {kind.__name__} is needed, but got {stage!r:.60}; on the command line --config FILE reads a file of settings"
        )


def _panoptic_of(stage: MaskStage, categories: CategoryTable, console: Console) -> PanopticDETR:
    return panoptic_model(trainable(open_source(stage.detector or "")), stage, categories, console)


def run_stage(
    stage: Stage, make_model: Callable[[Stage, CategoryTable, Console], nn.Module], *, frozen_detector: bool = False
) -> Path | None:
    """Start the processes, then train with one seed or with several.

    Args:
        stage: settings.
        make_model: the model for the settings of a run and the data's classes; what it has to tell it says on the console.
        frozen_detector: train the mask head only.

    Returns:
        The result, the best one of several runs; None if a signal came, so that what follows is not begun even where this run
        has come to its end.
    """
    fabric = start_fabric(stage.train, unused_parameters=not frozen_detector and stage.loss.switches_terms_off)
    resume_command = check_run_folder(stage.train, stage.job)
    if stage.train.runs == 1 or stage.train.dry_run or stage.train.range_test:
        return run_once(parts_of(stage)[0], make_model, fabric, resume_command, frozen_detector)

    def run(part: Stage, resume_command: str) -> Path | None:
        check_run_folder(part.train, part.job)
        return run_once(part, make_model, fabric, resume_command, frozen_detector)

    return train_seeds(stage, fabric, rank_zero_console(fabric), run)


def run_once(
    stage: Stage,
    make_model: Callable[[Stage, CategoryTable, Console], nn.Module],
    fabric: Fabric,
    resume_command: str,
    frozen_detector: bool,
) -> Path | None:
    """Data, model, losses; then train, or go on with the run that is there, and say what came out.

    Returns:
        The result; None if the run was stopped, or `train.dry_run` or `train.range_test` asked for something else.
    """
    console = rank_zero_console(fabric)
    dataset = open_train_set(stage.data, stage.augmentation, stage.inference, stage.train)
    model = make_model(stage, dataset.categories, console)
    frozen = prepare(model, stage.model, stage.optimizer)
    if frozen_detector and isinstance(model, PanopticDETR):
        frozen = [model.detector]
    criterion = criterion_for(model, dataset.categories.num_labels, stage.loss, frozen_detector=frozen_detector)
    if not frozen_detector:
        check_one_to_many(model, criterion)
    val_set = open_val_set(stage.data, stage.inference, stage.train, dataset.categories, fabric)
    trainer = Trainer(
        fabric,
        model,
        criterion,
        train_loader(dataset, stage.data, stage.train, fabric),
        optimizer=stage.optimizer,
        train=stage.train,
        template=template_of(model, dataset.categories, stage.inference),
        settings=plain(stage),
        frozen=frozen,
        evaluate=evaluator(stage, val_set, fabric, criterion),
        draw_samples=sample_drawer(stage, val_set),
        resume_command=resume_command,
    )
    if stage.train.range_test:
        find_rate(trainer, stage, console)
        return None
    trainer.resume()
    if stage.train.dry_run:
        _introduce(trainer, stage, dataset, console, None)
        console.print(str(forecast(trainer, stage, dataset, val_set)), highlight=False, soft_wrap=True)
        return None
    with announced(trainer, stage, dataset, console):
        if not trainer.resumed and trainer.total_steps >= FEWEST_STEPS:
            console.print(str(forecast(trainer, stage, dataset, val_set)), highlight=False, soft_wrap=True)
        trainer.fit()
        conclude(trainer, stage, console)
    return trainer.files.best if trainer.complete and not trainer.stopped else None


def find_rate(trainer: Trainer, stage: DetectorStage, console: Console) -> None:
    """Look at the losses of a rising learning rate, and leave a picture and the numbers in the run's folder."""
    found = range_test(trainer, stage.train.range_test)
    if not trainer.fabric.is_global_zero:
        return
    folder = stage.train.output
    folder.mkdir(parents=True, exist_ok=True)
    found.write(folder / "range_test.csv")
    found.draw(folder / "range_test.png", stage.optimizer.lr)
    console.print(
        f"learning rates {found.rates[0]:.1e} to {found.rates[-1]:.1e}: loss {found.smoothed[0]:.3f}, lowest "
        f"{min(found.smoothed):.3f}; try optimizer.lr {found.suggestion:.1e}; picture: {folder / 'range_test.png'}",
        highlight=False,
        soft_wrap=True,
    )


def new_model(config: ModelConfig, categories: CategoryTable, console: Console) -> nn.Module:
    """Build the model of a stage for the data's classes, with the weights that `model.weights` names, if any."""
    if config.weights is None:
        return build_model(config.name, num_labels=categories.num_labels, **with_stuff_labels(config, categories))
    overrides = {**with_stuff_labels(config, categories), "pretrained_backbone": False}
    model = build_model(config.name, num_labels=categories.num_labels, **overrides)
    transfer_weights(trainable(open_source(config.weights)), model, categories).print(console)
    return model


def save_untrained(stage: DetectorStage, path: Path) -> Path:
    """Write the model of a stage as it is before its first step, for what only measures; the path."""
    dataset = open_train_set(stage.data, stage.augmentation, stage.inference, stage.train)
    model = new_model(stage.model, dataset.categories, Console(quiet=True))
    checkpoint = template_of(model, dataset.categories, stage.inference)
    return save_checkpoint(path, replace(checkpoint, state_dict=model.state_dict()))


def trainable(source: Checkpoint) -> Checkpoint:
    """A source of weights as it is, unless its pictures were normalised in another way than training does it.

    Raises:
        ConfigError: they were.
    """
    if source.inference.get("image_mean") or source.inference.get("image_std"):
        raise ConfigError(
            f"the weights of {str(source.path or source.model.name)!r} want images with mean {source.inference['image_mean']} "
            f"and deviation {source.inference['image_std']}, and training has ImageNet's; they are good for prediction only"
        )
    return source


def with_stuff_labels(config: ModelConfig, categories: CategoryTable) -> dict[str, object]:
    """The overrides of a model, and the labels of the data's stuff where the model has queries for them."""
    if "stuff_labels" not in override_types(config.name):
        return dict(config.overrides)
    return {"stuff_labels": stuff_labels(categories), **config.overrides}


def stuff_labels(categories: CategoryTable) -> list[int]:
    """Labels of the stuff categories, in order."""
    return sorted(label for label, category in categories.by_label.items() if not category.isthing)


def panoptic_model(source: Checkpoint, stage: MaskStage, categories: CategoryTable, console: Console) -> PanopticDETR:
    """The panoptic model of a checkpoint's detector for the data's classes; if those are the checkpoint's, an exact copy."""
    name = source.model.name
    full_name = name if name.endswith(PANOPTIC) else name + PANOPTIC
    if stage.model.name and stage.model.name not in (full_name, full_name.removesuffix(PANOPTIC)):
        raise ConfigError(
            f"model.name is {stage.model.name!r}, but the detector {stage.detector!r} is {name!r}, and stage 2 builds "
            "the model of its detector; leave model.name out, or name another --detector"
        )
    check_detector_settings(source, stage)
    overrides = {**source.model.overrides, **stage.model.overrides, "pretrained_backbone": False}
    if "stuff_labels" in override_types(full_name) and "stuff_labels" not in stage.model.overrides:
        overrides["stuff_labels"] = stuff_labels(categories)  # the source's may be those of other classes
    model = build_model(full_name, num_labels=categories.num_labels, **overrides)
    assert isinstance(model, PanopticDETR)
    if isinstance(model.detector, MaskDETR) and not stage.joint:
        raise ConfigError(
            f"{name} makes its masks itself, so there is no mask head to train on the frozen detector; give --joint true, with "
            "which everything goes on training"
        )
    model.detector_bf16 = stage.detector_bf16
    if name == full_name and stage.model.weights is None:  # otherwise the mask head comes from elsewhere
        check_mask_settings(source, model)
    _copy_detector(source, model, stage, categories, console)
    if stage.model.weights is not None:
        copy_mask_head(open_source(stage.model.weights), model)
        console.print(f"mask head taken over from {stage.model.weights}", highlight=False, soft_wrap=True)
    return model


def _copy_detector(
    source: Checkpoint, model: PanopticDETR, stage: MaskStage, categories: CategoryTable, console: Console
) -> None:
    """Fill in the checkpoint's weights, by category name where its classes are others than the data's."""
    if source.categories is not None and not source.categories.differences(categories):
        source.load_into(model if source.model.name.endswith(PANOPTIC) else model.detector)
        return
    transfer = transfer_weights(source, model, categories)
    transfer.print(console)
    if transfer.classes_new and not stage.joint:
        console.print(
            f"warning: {len(transfer.classes_new)} of {len(categories.categories)} classes have untrained class weights, and "
            "the detector is frozen, so it cannot find them; train it first (train_detector --model.weights) or --joint true"
        )


def check_detector_settings(source: Checkpoint, stage: MaskStage) -> None:
    """Refuse settings with which the detector's weights would compute something else than they were trained for.

    With `joint` there may be more queries, because the new ones are trained.
    """
    asked = replace(source.model, overrides={**source.model.overrides, **stage.model.overrides})
    for key, (trained, given) in detector_changes(source.model, asked).items():
        if key != "stuff_labels" and (key != "num_queries" or not stage.joint):
            raise ConfigError(
                f"model.overrides.{key} is {given!r}, but the detector {stage.detector!r} was trained with {trained!r}; leave "
                "it out, because stage 2 takes the detector as it is (settings of the mask head begin with mask_)"
            )


def prepare(model: nn.Module, config: ModelConfig, optimizer: OptimizerConfig) -> list[nn.Module]:
    """Freeze what has learning rate 0, and apply what makes training faster or smaller.

    Returns:
        What is frozen now, for the trainer to keep in evaluation mode.
    """
    frozen = freeze_groups_at_rest(model, optimizer)
    if config.channels_last:
        use_channels_last(model)
    if config.activation_checkpointing:
        recompute_layers(model)
    if config.compile:
        model.compile(dynamic=True)
    return frozen


def check_one_to_many(model: nn.Module, criterion: Criterion | MaskCriterion) -> None:
    """Refuse one-to-many queries that no loss trains, and a hybrid branch without queries.

    Raises:
        ConfigError: the model and the matching scheme contradict each other.
    """
    queries, scheme = getattr(getattr(model, "detector", model), "num_one_to_many", 0), criterion.hybrid.scheme
    if queries and scheme != "branch":
        raise ConfigError(
            f"the model has {queries} one-to-many queries, which cost time in training, but 'loss.hybrid: {scheme}' trains "
            "none of them; give --model.overrides.num_one_to_many 0, or --loss.hybrid branch"
        )
    if scheme == "branch" and not queries:
        raise ConfigError(
            "'loss.hybrid: branch' trains one-to-many queries, and the model has none; give "
            "--model.overrides.num_one_to_many 1500 (H-DETR's number, for 300 queries), or another loss.hybrid"
        )


@contextmanager
def announced(trainer: Trainer, stage: DetectorStage, dataset: CocoPanoptic, console: Console) -> Iterator[None]:
    """Say what will happen, write the record of the run and a picture of its samples, and keep other runs out meanwhile.

    Raises:
        TrainingError: the first process could not; then no process begins.
    """
    refusal = None
    with ExitStack() as stack:
        if trainer.fabric.is_global_zero:
            try:
                stack.enter_context(only_run_in(stage.train.output))
                if not (trainer.resumed and trainer.complete):  # where nothing will be trained, nothing is announced
                    write_record(stage, dataset.categories, trainer.state.step if trainer.resumed else None)
                    _introduce(trainer, stage, dataset, console, stage.train.output / "samples.png")
            except InputError as error:
                refusal = str(error)
        if refusal := gather(trainer.fabric, refusal)[0]:
            raise TrainingError(refusal)
        yield


def _introduce(trainer: Trainer, stage: DetectorStage, dataset: CocoPanoptic, console: Console, picture: Path | None) -> None:
    fabric, train = trainer.fabric, stage.train
    batch = min(train.batch_size * fabric.world_size, len(dataset)) * train.accumulate
    facts = inspect_samples(dataset, picture, eval_transform(stage.inference.short_side, stage.inference.long_side))
    in_cells = getattr(getattr(trainer.model, "detector", trainer.model), "measures_in_cells", False)
    facts = replace(facts, fractions=not in_cells)
    epochs = trainer.total_steps * batch / len(dataset)
    length = f"{trainer.total_steps} steps of {batch} images = {epochs:.1f} epochs of {len(dataset)}"
    place = f"{fabric.world_size} x {fabric.device.type}, {train.precision}, seed {train.seed}"
    crowds = [f"all annotations of {category} are crowds: it is not learnt" for category in dataset.only_crowds]
    lines = [*crowds, f"{length}; {place}; folder {train.output}", *facts.lines(trainer.template.model.setting("num_queries"))]
    if validates_on_training(stage.data, train) and trainer.evaluate is not None:
        lines.append("note: validation and training have the same images, so the scores say nothing about new ones")
    print_groups(console, trainer.model, trainer.groups, lines)


def conclude(trainer: Trainer, stage: DetectorStage, console: Console) -> None:
    """After the run: the picture of its curves, where the result is, and what an overfitting run has shown.

    Raises:
        TrainingError: there is no result, because the disk was full all the time, or it was damaged afterwards.
    """
    if not trainer.fabric.is_global_zero or not trainer.complete:
        return
    if not trainer.files.best.exists():
        raise TrainingError(f"the run is over, but {str(trainer.files.best)!r} could not be written: its weights are lost")
    try:
        load_checkpoint(trainer.files.best)
    except CheckpointError as error:
        raise TrainingError(
            f"the run is over, but its result is unusable: {error}. {trainer.files.last} has the last weights"
        ) from None
    draw_curves(stage.train.output)
    _, verdict = learning_verdict(loss_curve(stage.train.output))
    if verdict and not stage.train.overfit:
        console.print(verdict, highlight=False, soft_wrap=True)
    console.print(f"result: {trainer.files.best}", highlight=False, soft_wrap=True)
    if stage.train.overfit and trainer.last_scores:
        console.print(overfit_verdict(trainer.last_scores), highlight=False, soft_wrap=True)


def template_of(model: nn.Module, categories: CategoryTable, inference: InferenceSettings) -> Checkpoint:
    """What every checkpoint of a run says besides weights."""
    spec = spec_of(model)
    # A checkpoint brings all weights; rebuilding its model must not fetch others.
    overrides = {name: value for name, value in spec.overrides.items() if name != "pretrained_backbone"}
    return Checkpoint(replace(spec, overrides=overrides), {}, categories, inference.to_dict())

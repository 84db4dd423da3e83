"""Train the mask head of a panoptic model on a frozen detector (stage 2), or with it (`--joint`).

After a small run of train_detector, in under a minute on a CPU:

    panoptic-detr train_masks --config configs/scenes/masks.yaml --detector runs/scenes_detector/best.pt \
        --data.root scenes --train.steps 50

The paper's: panoptic-detr train_masks --config configs/coco/detr_r50_masks.yaml --detector runs/boxes/best.pt --data.root coco
The model is the panoptic one of the checkpoint's detector. PQ on the validation set is printed as training goes on.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import plain, read_config_or_exit
from panoptic_detr.config.stages import MaskStage
from panoptic_detr.errors import ConfigError
from panoptic_detr.models import PanopticDETR
from panoptic_detr.training import build, build_data
from panoptic_detr.training.run.record import check_run_folder
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.watch import validation
from panoptic_detr.training.watch.progress import rank_zero_console
from panoptic_detr.weights import (
    Checkpoint,
    check_mask_settings,
    check_source,
    copy_mask_head,
    detector_changes,
    open_source,
    transfer_weights,
)
from panoptic_detr.zoo import PANOPTIC, build_model


def main(argv: Sequence[str] | None = None) -> int:
    """Load, build, train, save."""
    arguments = spelled_out(sys.argv[1:] if argv is None else argv)
    stage = read_config_or_exit(MaskStage, arguments, prog="panoptic-detr train_masks", description=__doc__ or "")
    train_masks(stage)
    return 0


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with a bare `--joint` as `--joint true`."""
    following = [*arguments, "--"][1:]
    return [
        word
        for argument, after in zip(map(str, arguments), map(str, following), strict=True)
        for word in ([argument, "true"] if argument == "--joint" and after.startswith("--") else [argument])
    ]


def train_masks(stage: MaskStage) -> None:
    """Run stage 2 with these settings; the result is `best.pt` in the run's folder."""
    if stage.detector is None:
        raise ConfigError("stage 2 starts from a detector: give --detector CHECKPOINT, a file of train_detector (best.pt)")
    for source in filter(None, (stage.detector, stage.model.weights)):
        check_source(source)
    fabric = build.start_fabric(stage.train, unused_parameters=stage.joint and build.switches_terms_off(stage.loss))
    console = rank_zero_console(fabric)
    resume_command = check_run_folder(stage.train, "train_masks")
    dataset = build_data.open_train_set(stage.data, stage.augmentation, stage.inference, stage.train)
    model = panoptic_model(open_source(stage.detector), stage, dataset.categories, console)
    if stage.model.weights is not None:
        copy_mask_head(open_source(stage.model.weights), model)
        console.print(f"mask head taken over from {stage.model.weights}", highlight=False, soft_wrap=True)
    frozen = build.prepare(model, stage.model, stage.optimizer)
    model.detector_bf16 = stage.detector_bf16
    template = build.template_of(model, dataset.categories, stage.inference)
    criterion = build.new_criterion(template.model.name, template.model.num_labels, losses(stage))
    if stage.joint:
        build.check_one_to_many(model, criterion)
    val_set = build_data.open_val_set(stage.data, stage.inference, stage.train, dataset.categories, fabric)
    trainer = Trainer(
        fabric,
        model,
        criterion,
        build_data.train_loader(dataset, stage.data, stage.train, fabric),
        optimizer=stage.optimizer,
        train=stage.train,
        template=template,
        settings=plain(stage),
        frozen=frozen if stage.joint else (model.detector,),
        evaluate=validation.evaluator(stage, val_set, fabric),
        draw_samples=validation.sample_drawer(stage, val_set),
        resume_command=resume_command,
    )
    trainer.resume()
    with build.announced(trainer, stage, dataset, console):
        trainer.fit()
        build.conclude(trainer, stage, console)


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
    model = build_model(full_name, num_labels=categories.num_labels, **overrides)
    assert isinstance(model, PanopticDETR)
    if name == full_name and stage.model.weights is None:  # otherwise the mask head comes from elsewhere
        check_mask_settings(source, model)
    if source.categories is not None and not source.categories.differences(categories):
        source.load_into(model if name == full_name else model.detector)
        return model
    transfer = transfer_weights(source, model, categories)
    transfer.print(console)
    if transfer.classes_new and not stage.joint:
        console.print(
            f"warning: {len(transfer.classes_new)} of {len(categories.categories)} classes have untrained class weights, and "
            "the detector is frozen, so it cannot find them; train it first (train_detector --model.weights) or --joint true"
        )
    return model


def check_detector_settings(source: Checkpoint, stage: MaskStage) -> None:
    """Refuse settings with which the detector's weights would compute something else than they were trained for.

    With `joint` there may be more queries, because the new ones are trained.
    """
    asked = replace(source.model, overrides={**source.model.overrides, **stage.model.overrides})
    for key, (trained, given) in detector_changes(source.model, asked).items():
        if key != "num_queries" or not stage.joint:
            raise ConfigError(
                f"model.overrides.{key} is {given!r}, but the detector {stage.detector!r} was trained with {trained!r}; leave "
                "it out, because stage 2 takes the detector as it is (settings of the mask head begin with mask_)"
            )


def losses(stage: MaskStage) -> dict[str, object]:
    """Arguments of the criterion: with a frozen detector only the mask losses train anything, so the others are left out."""
    frozen = {"aux_loss": False, "class_weight": 0.0, "l1_weight": 0.0, "giou_weight": 0.0, "dense_weight": 0.0}
    return {**({} if stage.joint else frozen), **stage.loss}


if __name__ == "__main__":
    sys.exit(run(main, None, "train_masks"))

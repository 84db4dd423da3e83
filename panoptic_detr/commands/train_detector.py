"""Train a detector on boxes around things and stuff (stage 1).

A small one in under a minute on a CPU:

    panoptic-detr data scenes scenes --count 200 --size 96
    panoptic-detr train_detector --config configs/scenes/detector.yaml --data.root scenes --train.steps 50

The paper's: panoptic-detr train_detector --config configs/coco/detr_r50_boxes.yaml --data.root coco --train.output runs/boxes
Every setting of the YAML can be given on the command line; `--train.resume true` goes on with a run that was stopped.
"""

import sys
from collections.abc import Sequence

from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import plain, read_config_or_exit
from panoptic_detr.config.stages import DetectorStage
from panoptic_detr.training import build, build_data
from panoptic_detr.training.run.record import check_run_folder
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.watch import validation
from panoptic_detr.training.watch.progress import rank_zero_console
from panoptic_detr.weights import check_source


def main(argv: Sequence[str] | None = None) -> int:
    """Load, build, train, save."""
    stage = read_config_or_exit(DetectorStage, argv, prog="panoptic-detr train_detector", description=__doc__ or "")
    train_detector(stage)
    return 0


def train_detector(stage: DetectorStage) -> None:
    """Run stage 1 with these settings; the result is `best.pt` in the run's folder."""
    if stage.model.weights is not None:
        check_source(stage.model.weights)
    fabric = build.start_fabric(stage.train, unused_parameters=build.switches_terms_off(stage.loss))
    resume_command = check_run_folder(stage.train, "train_detector")
    dataset = build_data.open_train_set(stage.data, stage.augmentation, stage.inference, stage.train)
    console = rank_zero_console(fabric)
    model = build.new_model(stage.model, dataset.categories, console)
    frozen = build.prepare(model, stage.model, stage.optimizer)
    criterion = build.new_criterion(stage.model.name, dataset.categories.num_labels, stage.loss)
    build.check_one_to_many(model, criterion)
    val_set = build_data.open_val_set(stage.data, stage.inference, stage.train, dataset.categories, fabric)
    trainer = Trainer(
        fabric,
        model,
        criterion,
        build_data.train_loader(dataset, stage.data, stage.train, fabric),
        optimizer=stage.optimizer,
        train=stage.train,
        template=build.template_of(model, dataset.categories, stage.inference),
        settings=plain(stage),
        frozen=frozen,
        evaluate=validation.evaluator(stage, val_set, fabric),
        draw_samples=validation.sample_drawer(stage, val_set),
        resume_command=resume_command,
    )
    trainer.resume()
    with build.announced(trainer, stage, dataset, console):
        trainer.fit()
        build.conclude(trainer, stage, console)


if __name__ == "__main__":
    sys.exit(run(main, None, "train_detector"))

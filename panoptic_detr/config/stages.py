"""Settings of a training stage: one flat dataclass per concern. `config.reading` fills them from YAML and the command line.

Models never see these classes: builders get plain keyword arguments.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.types import CLASS_SETTINGS, CLASSES_FROM_DATA, at_least, check_fields, fraction
from panoptic_detr.errors import ConfigError


@dataclass
class ModelConfig:
    """Which model to build.

    Attributes:
        name: one of `panoptic_detr.list_models()`; stage 2 builds that of its detector and refuses another one.
        overrides: keyword arguments of its builder that differ from the published model, for example `num_queries: 25`.
        weights: start from the weights of this checkpoint, published model, folder in the hub's form or repository of the hub
            instead of a fresh initialisation; in stage 2 the mask head starts from it (the detector has a setting of its own).
        activation_checkpointing: recompute encoder and decoder layers in the backward pass: less memory, about 30% more time.
        channels_last: memory format of the convolutions; faster on GPUs and for large images on CPUs.
        compile: run the model through `torch.compile`: its first steps take minutes, so it pays in long runs only.
    """

    name: str = "detr_r50"
    overrides: dict[str, object] = field(default_factory=dict)
    weights: str | None = None
    activation_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields("model", self)
        for name in CLASS_SETTINGS:
            if name in self.overrides:
                raise ConfigError(f"there is no setting 'model.overrides.{name}': {CLASSES_FROM_DATA}")


@dataclass
class DataConfig:
    """Where images and annotations lie and how they are prepared.

    Attributes:
        root: a folder in COCO's own layout; the splits below are looked up in it.
        train_split: name of the training split, for example `train2017`.
        val_split: name of the validation split; null for no evaluation during training.
        train_images: folder of training images, instead of `root`.
        train_panoptic: folder of their id PNGs, instead of `root`.
        train_annotations: their COCO-panoptic JSON, instead of `root`.
        val_images: folder of validation images, instead of `root`.
        val_panoptic: folder of their id PNGs, instead of `root`.
        val_annotations: their COCO-panoptic JSON, instead of `root`.
        train_limit: use only the first N training images.
        val_limit: use only the first N validation images.
        workers: loader processes; 0 loads in the training process.
        cache: keep decoded images and id maps in memory, in every worker of its own.
        on_unreadable: an image or annotation that cannot be read: `stop`, or `skip` it and say so; for validation every file
            is then read once before the run.
    """

    root: Path | None = None
    train_split: str = "train2017"
    val_split: str | None = "val2017"
    train_images: Path | None = None
    train_panoptic: Path | None = None
    train_annotations: Path | None = None
    val_images: Path | None = None
    val_panoptic: Path | None = None
    val_annotations: Path | None = None
    train_limit: int | None = None
    val_limit: int | None = None
    workers: int = 2
    cache: bool = False
    on_unreadable: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        check_fields("data", self)
        at_least("data.workers", self.workers, 0)
        at_least("data.train_limit", self.train_limit, 1)
        at_least("data.val_limit", self.val_limit, 1)


@dataclass
class AugmentationConfig:
    """What happens to training images; a setting of null takes the preset's value.

    Attributes:
        preset: `paper`: flip, sometimes a crop, one of several scales; `scenes`: flips and recolouring at the original size;
            `crops`: a square window and flips, for many small things; `photos`: a window at a scale drawn from a wide
            range, a flip and other colours; `none`: the resize of evaluation only.
        short_sides: one of these becomes the short side (for `crops` before the window is cut).
        long_side: limit of the long side.
        crop_probability: for `paper`, of a random crop before the resize.
        crop_size: for `crops`, side of the window in pixels.
        horizontal_flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
        permute_channels: shuffle red, green and blue.
        invert: probability of the negative.
        brightness: largest change of brightness, as a fraction.
        window: for `photos`, height and width of what is cut out.
        scales: for `photos`, least and largest scale of the picture before the window is cut.
        rotation: for `photos`, largest angle in degrees.
        contrast: for `photos`, largest change as a fraction.
        saturation: for `photos`, largest change as a fraction.
        hue: for `photos`, largest change as a share of the colour circle.
        blur: for `photos`, probability of a blur.
        copy_paste: for `photos`, probability that things of another image are pasted in.
        mosaic: for `photos`, probability that four images share the window.
    """

    preset: Literal["paper", "scenes", "crops", "photos", "none"] = "paper"
    short_sides: list[int] | None = None
    long_side: int | None = None
    crop_probability: float | None = None
    crop_size: int | None = None
    horizontal_flip: float | None = None
    vertical_flip: float | None = None
    permute_channels: bool | None = None
    invert: float | None = None
    brightness: float | None = None
    window: list[int] | None = None
    scales: list[float] | None = None
    rotation: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    blur: float | None = None
    copy_paste: float | None = None
    mosaic: float | None = None

    def __post_init__(self) -> None:
        check_fields("augmentation", self)
        shares = (
            "crop_probability",
            "horizontal_flip",
            "vertical_flip",
            "invert",
            "brightness",
            "contrast",
            "saturation",
            "blur",
        )
        for name in (*shares, "copy_paste", "mosaic"):
            fraction(f"augmentation.{name}", getattr(self, name))
        fraction("augmentation.hue", self.hue, 0.5)
        fraction("augmentation.rotation", self.rotation, 180)
        for name in ("long_side", "crop_size"):
            at_least(f"augmentation.{name}", getattr(self, name), 1)
        for side in self.short_sides or ():
            at_least("augmentation.short_sides", side, 1)
        if self.short_sides == []:
            raise ConfigError("setting 'augmentation.short_sides' is an empty list; leave it out for the preset's sides")


@dataclass
class OptimizerConfig:
    """AdamW, its groups and its schedule.

    Attributes:
        lr: learning rate of transformer and heads.
        backbone_lr_scale: the backbone's rate as a multiple of `lr` (0 freezes it).
        offset_lr_scale: the same for the sampling offsets and reference points of deformable attention.
        layer_decay: the rate of each backbone stage as a multiple of that of the stage after it, the stem's included: below 1,
            the early ones, which know edges and textures already, change less.
        weight_decay: of AdamW, on every parameter that is trained.
        clip_norm: gradients are scaled down to this L2 norm; 0 turns clipping off.
        schedule: `step` multiplies the rate by `drop_factor` at each of `drop_at`; `cosine` falls to 0 at the end.
        drop_at: for `step`: epochs, or steps where the length of the run is given in steps.
        drop_factor: for `step`.
        warmup: fraction of all steps in which the rate rises linearly from 0.
    """

    lr: float = 1e-4
    backbone_lr_scale: float = 0.1
    offset_lr_scale: float = 0.1
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    drop_at: list[int] = field(default_factory=list)
    drop_factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_fields("optimizer", self)
        for name in ("lr", "backbone_lr_scale", "offset_lr_scale", "weight_decay", "clip_norm"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"optimizer.layer_decay must be in (0, 1], but got {self.layer_decay}; 1 is the same rate for all"
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optimizer.warmup is a fraction of the run in [0, 1), but got {self.warmup}")
        if sorted(self.drop_at) != self.drop_at:
            raise ConfigError(f"optimizer.drop_at must be in ascending order, but got {self.drop_at}")


@dataclass
class TrainConfig:
    """Length, pace, hardware and bookkeeping of a run.

    Attributes:
        output: the run's folder: checkpoints, config, log.
        epochs: passes over the training set.
        steps: optimizer steps, counted instead of epochs where given.
        batch_size: images per process and forward pass.
        accumulate: forward passes per optimizer step; equal to one big batch.
        seed: of weights, order, augmentation and dropout.
        deterministic: refuse operations that are not reproducible; bit-equal reruns on CPUs.
        accelerator: `auto`, `cpu`, `cuda`, `mps`.
        devices: processes on this machine, one device each.
        threads: CPU threads of PyTorch; null leaves the choice to it. Small models on small images are fastest with one.
        nodes: machines (start one process per device with torchrun or SLURM).
        strategy: how several processes share the work: `auto` or `ddp`, gradients averaged over them and weights in each;
            `fsdp`, trained weights, gradients and the optimizer's state spread over them as well.
        precision: `32-true`, `bf16-mixed`, `16-mixed`.
        ema_decay: keep an exponential moving average of the weights, evaluate and export it; 0 for none.
        evaluate_every: steps between evaluations of PQ on the validation set; 0 for only at the end.
        checkpoint_every: steps between checkpoints; 0 for only at evaluations and at the end.
        keep_last: checkpoints to keep besides the best.
        early_stop: stop after so many evaluations without a better PQ; 0 never stops.
        resume: continue the run in `output`, if there is one.
        on_nonfinite: loss or gradient not finite: `stop`, or `skip` the step (at most `max_skipped` in a run).
        max_skipped: limit for `on_nonfinite: skip`.
        on_disk_full: a checkpoint that cannot be written: `stop`, or `go_on` with the previous one kept.
        log_every: steps between lines of the CSV log.
        tensorboard: also write the log for TensorBoard, where it is installed.
        sample_pictures: validation images whose truth and prediction are drawn for TensorBoard at every evaluation; 0 for none.
        overfit: train and evaluate on the first N training images without augmentation; 0 for a normal run.
        dry_run: say what the run will need in time and memory, measured on a few steps, and stop there; nothing is written.
        runs: train so many times, with `seed`, `seed` + 1 and so on, each in a folder of its own below `output`; scores of all,
            their mean and their spread are printed and kept in `runs.json`.
        range_test: instead of training, raise the learning rate within so many steps and draw what the loss does; 0 trains.
    """

    output: Path = Path("runs/train")
    epochs: int = 1
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    seed: int = 0
    deterministic: bool = False
    accelerator: str = "auto"
    devices: int = 1
    threads: int | None = None
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    ema_decay: float = 0.0
    evaluate_every: int = 0
    checkpoint_every: int = 1000
    keep_last: int = 1
    early_stop: int = 0
    resume: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 100
    on_disk_full: Literal["stop", "go_on"] = "stop"
    log_every: int = 10
    tensorboard: bool = True
    sample_pictures: int = 4
    overfit: int = 0
    dry_run: bool = False
    runs: int = 1
    range_test: int = 0

    def __post_init__(self) -> None:
        check_fields("train", self)
        counts = (
            "epochs",
            "steps",
            "batch_size",
            "accumulate",
            "devices",
            "threads",
            "nodes",
            "keep_last",
            "log_every",
            "runs",
        )
        for name in counts:
            at_least(f"train.{name}", getattr(self, name), 1)
        if self.range_test:
            at_least("train.range_test", self.range_test, 20)
        for name in ("seed", "evaluate_every", "checkpoint_every", "early_stop", "max_skipped", "overfit", "sample_pictures"):
            at_least(f"train.{name}", getattr(self, name), 0)
        if self.seed >= 2**32 - self.devices * self.nodes - self.runs + 1:  # each process adds its number
            raise ConfigError(f"setting 'train.seed' must be below 2**32 less one per process, but got {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must be in [0, 1), but got {self.ema_decay}")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ConfigError("train.strategy: fsdp does not go with train.precision: 16-mixed; use bf16-mixed, or ddp")


@dataclass
class DetectorStage:
    """Stage 1: boxes around things and stuff.

    Attributes:
        model: what to build.
        data: what to train on.
        augmentation: of the training images.
        optimizer: AdamW and its schedule.
        train: length, hardware, bookkeeping.
        loss: matching and losses.
        inference: how masks become a map in evaluation; saved with the checkpoint.
    """

    job = "train_detector"  # not a setting: the command that takes these settings

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    inference: InferenceSettings = field(default_factory=InferenceSettings)

    def __post_init__(self) -> None:
        check_fields(self.job, self)
        for name in ("compile", "channels_last"):
            if self.train.strategy == "fsdp" and getattr(self.model, name):
                raise ConfigError(f"train.strategy: fsdp does not go with model.{name}; switch it off, or use ddp")


@dataclass
class MaskStage(DetectorStage):
    """Stage 2: the mask head on a frozen detector; sections as in `DetectorStage`.

    Attributes:
        model: settings of the panoptic model; name and overrides are those of `detector` where this says nothing.
        detector: checkpoint of stage 1, the name of a published model, a folder in the hub's form, or a repository of the hub;
            other classes are mapped by name.
        joint: train the detector along with the mask head instead of freezing it.
        detector_bf16: run the frozen detector in bfloat16 in training steps; faster on hardware with bfloat16 units.
    """

    job = "train_masks"

    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=""))
    detector: str | None = None
    joint: bool = False
    detector_bf16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint and self.detector_bf16:
            raise ConfigError("detector_bf16 is for a frozen detector; with joint use train.precision: bf16-mixed")

"""Start a model from the weights of another one: class heads go by category name, and nothing is skipped in silence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CheckpointError
from panoptic_detr.weights.checkpoints import Checkpoint
from panoptic_detr.zoo import PANOPTIC, ModelSpec, override_types, spec_of

CLASS_HEADS = ("class_embed", "dense_heads")
STUFF_QUERIES = "stuff_embed.weight"  # one row for each stuff class, in the order of `stuff_labels`
QUERIES = "query_embed"
# Settings that change nothing in what trained weights compute.
TRAINING_ONLY = ("dropout", "drop_path", "num_one_to_many", "dense_aux", "pretrained_backbone")


@dataclass
class Transfer:
    """What happened to the weights."""

    copied: list[str] = field(default_factory=list)  # names of parameters that were taken over whole
    # parameters of the model that the source does not have or has in another shape, as `name: why`
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # parameters of the source that the model has no place for
    classes_kept: list[str] = field(default_factory=list)  # names of categories whose class weights were taken over
    classes_new: list[str] = field(default_factory=list)  # names of categories that start from random class weights
    # names of categories of the source that the data set does not have
    classes_dropped: list[str] = field(default_factory=list)
    # settings with which the weights compute something else than they were trained for
    settings_changed: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """Show everything as a table."""
        table = Table(title="weights taken over", title_justify="left")
        for column in ("what", "count", "which"):
            table.add_column(column, justify="right" if column == "count" else "left")
        rows = {
            "parameters copied": self.copied and [f"{self.copied[0]} .. {self.copied[-1]}"],
            "parameters new": self.fresh,
            "parameters dropped": self.dropped,
            "classes kept": self.classes_kept,
            "classes new": self.classes_new,
            "classes dropped": self.classes_dropped,
            "settings changed": self.settings_changed,
        }
        for what, shown in rows.items():
            count = len(self.copied if what == "parameters copied" else shown)
            table.add_row(what, str(count), ", ".join(shown))
        console.print(table)


def detector_changes(trained: ModelSpec, built: ModelSpec) -> dict[str, tuple[object, object]]:
    """Settings that matter to weights, and in which the model that has them and one that gets them differ: before and after."""
    name, other = (spec.name.removesuffix(PANOPTIC) for spec in (trained, built))
    keys = [key for key in override_types(name) if key not in TRAINING_ONLY] if name == other else []
    pairs = {key: (_plain(trained.setting(key)), _plain(built.setting(key))) for key in keys}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@torch.no_grad()
def transfer_weights(source: Checkpoint, model: nn.Module, categories: CategoryTable) -> Transfer:
    """Copy what fits from a checkpoint into a freshly built model.

    Class heads are copied row by row for the categories that both know by name; learned queries as many as both have.

    Args:
        source: the weights, with their class table.
        model: where to; its labels mean `categories`. A detector's weights also fit a panoptic model with that detector.
        categories: class table of the data set.

    Raises:
        CheckpointError: the source does not say what its classes mean, or has nothing in common with the model.
    """
    if source.categories is None:
        raise CheckpointError(f"checkpoint {str(source.path)!r} does not say what its labels mean, so they cannot be mapped")
    rows = _common_labels(source.categories, categories)
    changes = detector_changes(source.model, spec_of(model))
    result = Transfer(settings_changed=[f"{key} {before!r} -> {after!r}" for key, (before, after) in changes.items()])
    state, theirs = model.state_dict(), _fitting_names(source.state_dict, model)
    for name, value in state.items():
        given = theirs.get(name)
        if given is None or given.is_floating_point() != value.is_floating_point():
            result.fresh.append(f"{name}: not in the source")
        elif _is_class_head(name) and _same_width(name, state, theirs) and len(given) >= source.categories.num_labels:
            _copy_rows(value, given, {0: 0} if _is_proposal_head(name, state) else rows, source.categories, categories)
            result.copied.append(name)
        elif name.endswith(STUFF_QUERIES) and value.shape[1:] == given.shape[1:]:
            result.fresh += _copy_stuff_queries(name, value, given, rows, spec_of(model), source)
        elif value.shape == given.shape and not _is_class_head(name):
            value.copy_(given)
            result.copied.append(name)
        elif QUERIES in name and value.shape[1:] == given.shape[1:]:
            count = min(len(value), len(given))
            value[:count] = given[:count]
            result.fresh.append(f"{name}: the first {count} of {len(value)} taken over")
        else:
            result.fresh.append(f"{name}: {tuple(value.shape)} here, {tuple(given.shape)} in the source")
    if not result.copied:
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} ({source.model.name}) has no parameter in common with this model"
        )
    result.dropped = [name for name in theirs if name not in state]
    heads_copied = any(_is_class_head(name) for name in result.copied)
    kept = {source.categories.by_label[label].name for label in rows} if heads_copied else set()
    result.classes_kept = [c.name for c in categories.categories if c.name in kept]
    result.classes_new = [c.name for c in categories.categories if c.name not in kept]
    result.classes_dropped = [c.name for c in source.categories.categories if c.name not in kept]
    return result


def copy_mask_head(source: Checkpoint, model: nn.Module) -> None:
    """Copy a panoptic checkpoint's mask head to a panoptic model; it knows no classes, so it fits whatever the data set.

    Raises:
        CheckpointError: the source has no mask head, or one of other shapes or with other settings.
    """
    where = f"{str(source.path or source.model.name)!r}"
    start = "mask_head."
    head = {name.removeprefix(start): value for name, value in source.state_dict.items() if name.startswith(start)}
    if not head:
        raise CheckpointError(
            f"{where} has no mask head to start from; stage 2 needs a panoptic model as model.weights, or none"
        )
    state = model.get_submodule("mask_head").state_dict()
    differing = [name for name in state if name not in head or head[name].shape != state[name].shape]
    if differing or len(head) != len(state):
        raise CheckpointError(
            f"the mask head of {where} does not fit that of this model ({', '.join(differing[:3]) or 'it has more layers'}): "
            "leave model.weights out to start with a new one"
        )
    check_mask_settings(source, model)
    model.get_submodule("mask_head").load_state_dict(head)


def check_mask_settings(source: Checkpoint, model: nn.Module) -> None:
    """Raise `CheckpointError` if the source's mask head computes something else than the model's with the same weights."""
    for name in ("mask_scale_maps", "mask_inside_boxes"):
        here, there = (str(spec.setting(name)).lower() for spec in (spec_of(model), source.model))
        if here != there:
            raise CheckpointError(
                f"the mask head of {str(source.path or source.model.name)!r} was trained with {name} {there}, "
                f"but this model has {here}; give --model.overrides.{name} {there}"
            )


def _copy_stuff_queries(
    name: str, value: Tensor, given: Tensor, rows: dict[int, int], spec: ModelSpec, source: Checkpoint
) -> list[str]:
    """Copy the query of each stuff class that both have; says which of ours are new."""
    theirs = list(source.model.setting("stuff_labels"))
    fresh = []
    there_of = {here: there for there, here in rows.items()}
    for place, label in enumerate(spec.setting("stuff_labels")):
        if there_of.get(label) in theirs:
            value[place] = given[theirs.index(there_of[label])]
        else:
            fresh.append(f"{name}: the query of label {label} is new")
    return fresh


def _common_labels(source: CategoryTable, target: CategoryTable) -> dict[int, int]:
    """Source label to target label of the categories that both have by name."""
    by_name = {category.name: label for label, category in target.by_label.items()}
    return {label: by_name[category.name] for label, category in source.by_label.items() if category.name in by_name}


def _fitting_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The source's parameters under the names of the model: a detector's belong to the `detector` of a panoptic model."""
    is_panoptic = hasattr(model, "mask_head")
    if is_panoptic and not any(name.startswith("detector.") for name in state):
        return {f"detector.{name}": value for name, value in state.items()}
    if not is_panoptic and any(name.startswith("detector.") for name in state):
        return {name.removeprefix("detector."): value for name, value in state.items()}
    return dict(state)


def _is_class_head(name: str) -> bool:
    return any(part in CLASS_HEADS for part in name.split("."))


def _same_width(name: str, state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether the head that a weight or bias belongs to reads states of the same width in both."""
    weight = f"{name.rpartition('.')[0]}.weight"
    return weight in theirs and state[weight].shape[1:] == theirs[weight].shape[1:]


def _is_proposal_head(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether this is the head that scores the encoder's proposals: it has one meaningful row, whatever the classes."""
    number = re.search(r"class_embed\.(\d+)\.", name)
    layers = [int(found.group(1)) for key in state if (found := re.search(r"(?:^|\.)decoder\.layers\.(\d+)\.", key))]
    return number is not None and int(number.group(1)) > max(layers, default=0)


def _copy_rows(to: Tensor, given: Tensor, rows: Mapping[int, int], source: CategoryTable, target: CategoryTable) -> None:
    """Copy the rows of common classes, and the no-object row where there is one."""
    for there, here in rows.items():
        to[here] = given[there]
    if len(given) > source.num_labels and len(to) > target.num_labels:
        to[-1] = given[-1]

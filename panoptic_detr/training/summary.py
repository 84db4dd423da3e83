"""What a run says about itself before it starts: what trains at which rate, what is frozen, how long it is."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from torch import nn

from panoptic_detr.training.optimizer import ParameterGroup


def print_groups(console: Console, model: nn.Module, groups: Sequence[ParameterGroup], lines: Sequence[str]) -> None:
    """Show which parameters train at which rate and which are frozen.

    Args:
        console: where to.
        model: the whole model.
        groups: what the optimizer trains.
        lines: facts about the run, one per line below the table.
    """
    table = Table(title="parameters", title_justify="left")
    for column, justify in (("group", "left"), ("values", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for group in groups:
        table.add_row(group.name, f"{group.size:,}", f"{group.lr:.1e}")
    frozen = sum(parameter.numel() for parameter in model.parameters()) - sum(group.size for group in groups)
    if frozen:
        table.add_row("frozen", f"{frozen:,}", "-")
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)

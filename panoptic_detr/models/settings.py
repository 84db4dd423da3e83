"""Rules for the sizes that models are built from: a wrong one is one error that names it, its value and the way out."""

import os
from collections.abc import Sequence
from numbers import Integral

from panoptic_detr.errors import InputError

LARGEST = {"hidden_dim": 2**14, "ffn_dim": 2**18, "num_levels": 32, "encoder_layers": 1000, "decoder_layers": 1000}
LARGEST_COUNT = 10**5  # of anything else: queries, labels, rows of a table


def check_counts(least: int, **counts: object) -> None:
    """Raise `InputError` unless every count, by its setting, is a whole number from `least` to what anybody could mean."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name} must be a whole number, but got {value!r}")
        if int(value) < least:
            raise InputError(f"{name} must be at least {least}, but got {value}; leave it out for the published models' number")
        if int(value) > (most := LARGEST.get(name, LARGEST_COUNT)):
            raise InputError(f"{name} must be at most {most}, but got {value}; no machine could hold such a model")


def check_memory(*, hidden_dim: int, ffn_dim: int, layers: int, rows: int) -> None:
    """Raise `InputError` if a transformer does not even fit into this machine's memory, before anything is built.

    `layers` are those of encoder and decoder together, `rows` the vectors of width D besides: queries, and labels of each head.
    """
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}) else 2**28
    memory, parameters = pages * 4096, layers * (8 * hidden_dim**2 + 2 * hidden_dim * ffn_dim) + 2 * rows * hidden_dim
    if 4 * parameters > memory:
        raise InputError(
            f"a model of {layers} layers with hidden_dim {hidden_dim} and ffn_dim {ffn_dim} has about {parameters / 1e9:.1f} "
            f"billion parameters and does not fit into the {memory / 2**30:.0f} GiB of this machine: make one of them smaller"
        )


def check_shares(**shares: float) -> None:
    """Raise `InputError` unless every share of what is left out in training, by its setting, is at least 0 and below 1."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(
                f"{name} must be in [0, 1), the share of what training leaves out, but got {value}; 0 leaves nothing out"
            )


def check_heads(hidden_dim: int, num_heads: int) -> None:
    """Raise `InputError` unless the heads of an attention divide its width."""
    check_counts(1, hidden_dim=hidden_dim, num_heads=num_heads)
    if hidden_dim % num_heads:
        divisors = [count for count in range(1, hidden_dim + 1) if hidden_dim % count == 0]
        nearest = min(divisors, key=lambda count: abs(count - num_heads))
        raise InputError(
            f"hidden_dim must be a multiple of num_heads, but got {hidden_dim} and {num_heads}; take num_heads {nearest}"
        )


def check_groups(hidden_dim: int, norm_groups: int | None) -> None:
    """Raise `InputError` unless the width has so many groups of channels."""
    if norm_groups is None:
        return
    check_counts(1, norm_groups=norm_groups)
    if hidden_dim % norm_groups:
        raise InputError(f"hidden_dim must be a multiple of norm_groups, but got {hidden_dim} and {norm_groups}")


def check_width(hidden_dim: int, parts: int) -> None:
    """Raise `InputError` unless the width has so many equal parts: two axes, sines and cosines of each."""
    if hidden_dim % parts:
        raise InputError(
            f"hidden_dim must be a multiple of {parts}, but got {hidden_dim}: the position encoding has {parts} equal parts; "
            f"take {-(-hidden_dim // parts) * parts}"
        )


def check_backbone_levels(levels: Sequence[int], finest: int) -> None:
    """Raise `InputError` unless the levels are some of a backbone's, from its finest (0 or 1) to 4 (stride 32), in order."""
    if not levels or list(levels) != sorted({*levels} & {*range(finest, 5)}):
        raise InputError(
            f"backbone_levels must be one or more of {', '.join(map(str, range(finest, 5)))}, each once and in this order, but "
            f"got {list(levels)}"
            + ("; level 0 (stride 2) is for backbone=small and for networks of timm" if finest and 0 in levels else "")
        )


def check_memory_level(memory_level: int, used: int) -> None:
    """Raise `InputError` unless the level is one of the `used` backbone levels, counted from either end."""
    if not -used <= memory_level < used:
        raise InputError(
            f"memory_level must be in [{-used}, {used - 1}], one of the {used} backbone levels, but got {memory_level}; "
            "-1 is the coarsest"
        )


def check_anchors(anchor_size: float, num_levels: int) -> None:
    """Raise `InputError` unless some level has anchors that may propose boxes (see `Proposals`)."""
    if not any(0.01 < anchor_size * 2**level < 0.99 for level in range(num_levels)):
        raise InputError(
            f"anchor_size must be a fraction of the image, but with {anchor_size}, doubled from level to level, none of the "
            f"{num_levels} levels has anchors between 0.01 and 0.99; the published models have 0.05"
        )


def check_mask_head(hidden_dim: int, num_heads: int, num_features: int) -> None:
    """Raise `InputError` unless a mask head can have these sizes; each level finer than the memory halves its width."""
    if num_features < 1:
        raise InputError(
            "the mask head needs a backbone level finer than its memory, but there is none: add one to backbone_levels, or "
            "raise memory_level"
        )
    check_counts(1, num_heads=num_heads)
    if hidden_dim % num_heads:
        raise InputError(
            f"hidden_dim must be a multiple of {num_heads}, the mask head's attention maps per query, but got {hidden_dim}; "
            f"take {-(-hidden_dim // num_heads) * num_heads}"
        )
    least = 2 ** (num_features + 1)
    if hidden_dim < least:
        raise InputError(
            f"hidden_dim must be at least {least} for a mask head that halves it for each of {num_features} backbone levels, "
            f"but got {hidden_dim}"
        )

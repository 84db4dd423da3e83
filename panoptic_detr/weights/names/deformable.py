"""Names of the published Deformable-DETR and H-Deformable-DETR checkpoints, as rules that give ours.

There the heads appear once per decoder layer even where all layers share one, and once more below the decoder where boxes are
refined; equal entries become one here.
"""

from collections.abc import Iterable

Rules = tuple[tuple[str, str], ...]

DEFORMABLE_RULES: Rules = (
    # Swin: the authors' stages end in the downsampling that opens timm's next one; the last stage's goes first.
    *((rf"^backbone\.0\.body\.layers\.{i}\.downsample\.", f"backbone.0.body.layers.{i + 1}.downsample.") for i in (2, 1, 0)),
    (r"^backbone\.0\.body\.norm(\d)\.", r"backbone.0.body.norms.\1."),
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.decoder\.(class_embed|bbox_embed)\.", r"\1."),
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^transformer\.level_embed$", "level_embed"),
    (r"^transformer\.(reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.", r"queries.\1."),
    (r"^query_embed\.", "queries.query_embed."),
    (r"^class_embed\.(\d+)\.", r"heads.class_embed.\1.linear."),
    (r"^bbox_embed\.(\d+)\.", r"heads.bbox_embed.\1.mlp."),
    (r"^input_proj\.", "input_proj.levels."),
    (r"\.layers\.(\d+)\.linear([12])\.", r".layers.\1.ffn.linear\2."),
)
SHARED_HEADS: Rules = ((r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0."),)


def is_deformable(names: Iterable[str]) -> bool:
    """Tell a deformable detector's checkpoint by its level embedding."""
    return "transformer.level_embed" in names


def deformable_rules(names: Iterable[str]) -> Rules:
    """Rules for a checkpoint with these names; without refinement all layers' heads are one."""
    refines = any(name.startswith("transformer.decoder.bbox_embed.") for name in names)
    return DEFORMABLE_RULES if refines else SHARED_HEADS + DEFORMABLE_RULES

"""Settings of a model that make no sense: one error each, which names the setting, its value and the way out."""

import inspect
from typing import get_type_hints

import pytest
import torch

from panoptic_detr import build_model
from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.deformable.detector import build_deformable_detr
from panoptic_detr.models.detr import build_detr
from panoptic_detr.models.mask_head import MaskHead
from panoptic_detr.structures import pad_images

TINY = {
    "num_labels": 3,
    "num_queries": 4,
    "backbone": "small",
    "backbone_norm": "batch",
    "hidden_dim": 32,
    "num_heads": 2,
    "ffn_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
}
DETR, DEFORMABLE = ("detr_r50",), ("deformable_detr_r50", "deformable_detr_r50_two_stage", "h_deformable_detr_r50")
MASKS = ("detr_r50_panoptic", "deformable_detr_r50_panoptic")
ALL = (*DETR, *DEFORMABLE, *MASKS)
LEVELS = "backbone_levels must be one or more of 0, 1, 2, 3, 4, each once and in this order, but got "
CASES = [
    (ALL, {"num_labels": 0}, "num_labels must be at least 1, but got 0; leave it out"),
    (ALL, {"num_labels": -1}, "num_labels must be at least 1, but got -1"),
    (ALL, {"num_labels": "91"}, "num_labels must be a whole number, but got '91'"),
    (ALL, {"num_labels": True}, "num_labels must be a whole number, but got True"),
    (ALL, {"num_labels": 2.5}, "num_labels must be a whole number, but got 2.5"),
    (ALL, {"num_queries": 0}, "num_queries must be at least 1, but got 0"),
    (ALL, {"hidden_dim": 0}, "hidden_dim must be at least 1, but got 0"),
    (ALL, {"hidden_dim": 18}, "hidden_dim must be a multiple of 4, but got 18: .*; take 20"),
    (ALL, {"num_heads": 0}, "num_heads must be at least 1, but got 0"),
    (ALL, {"num_heads": -2}, "num_heads must be at least 1, but got -2"),
    (ALL, {"num_heads": 7}, "hidden_dim must be a multiple of num_heads, but got 32 and 7; take num_heads 8"),
    (ALL, {"num_heads": 64}, "hidden_dim must be a multiple of num_heads, but got 32 and 64; take num_heads 32"),
    (ALL, {"hidden_dim": 256, "num_heads": 7}, "but got 256 and 7; take num_heads 8"),
    (ALL, {"encoder_layers": -1}, "encoder_layers must be at least 0, but got -1"),
    (ALL, {"decoder_layers": 0}, "decoder_layers must be at least 1, but got 0"),
    (ALL, {"ffn_dim": -1}, "ffn_dim must be at least [01], but got -1"),
    (DEFORMABLE, {"ffn_dim": 0}, "ffn_dim must be at least 1, but got 0"),
    (ALL, {"dropout": 1.5}, r"dropout must be in \[0, 1\), .* but got 1\.5; 0 leaves nothing out"),
    (ALL, {"dropout": 1}, r"dropout must be in \[0, 1\), .* but got 1; 0 leaves nothing out"),
    (ALL, {"dropout": -0.1}, r"dropout must be in \[0, 1\), .* but got -0\.1"),
    (ALL, {"dropout": float("nan")}, r"dropout must be in \[0, 1\), .* but got nan"),
    (DETR, {"position_table_size": 0}, "position_table_size must be at least 1, but got 0"),
    (DETR, {"hidden_dim": 33, "num_heads": 3, "position_encoding": "learned"}, "a multiple of 2, but got 33: .*; take 34"),
    (DEFORMABLE, {"num_one_to_many": -1}, "num_one_to_many must be at least 0, but got -1"),
    (DEFORMABLE, {"num_points": 0}, "num_points must be at least 1, but got 0"),
    (DEFORMABLE, {"num_levels": 0}, "num_levels must be at least 1, but got 0"),
    (DEFORMABLE, {"num_backbone_levels": 0}, "num_backbone_levels must be at least 1, but got 0"),
    (DEFORMABLE, {"num_backbone_levels": -1}, "num_backbone_levels must be at least 1, but got -1"),
    (DEFORMABLE, {"memory_level": 3}, r"memory_level must be in \[-3, 2\], .* but got 3; -1 is the coarsest"),
    (DEFORMABLE, {"memory_level": -4}, r"memory_level must be in \[-3, 2\], .* but got -4"),
    (DEFORMABLE, {"num_levels": 1, "memory_level": 1}, r"memory_level must be in \[-1, 0\], .* but got 1"),
    (DEFORMABLE, {"backbone_levels": []}, LEVELS + r"\[\]"),
    (DEFORMABLE, {"backbone_levels": [3, 2]}, LEVELS + r"\[3, 2\]"),
    (DEFORMABLE, {"backbone_levels": (3, 3)}, LEVELS + r"\[3, 3\]"),
    (DEFORMABLE, {"backbone_levels": [4, 5]}, LEVELS + r"\[4, 5\]"),
    (DEFORMABLE, {"backbone_levels": [-1, 2]}, LEVELS + r"\[-1, 2\]"),
    (DEFORMABLE, {"anchor_size": 0.0}, r"anchor_size must be a fraction of the image, but with 0\.0, .* models have 0\.05"),
    (DEFORMABLE, {"anchor_size": -0.05}, r"anchor_size must be .* but with -0\.05, .* none of the 4 levels"),
    (DEFORMABLE, {"anchor_size": 1}, "anchor_size must be .* but with 1, "),
    (DEFORMABLE, {"anchor_size": 0.001, "num_levels": 2}, r"anchor_size must be .* but with 0\.001, .* none of the 2 levels"),
    (MASKS, {"mask_dropout": 1.5}, r"mask_dropout must be in \[0, 1\), .* but got 1\.5"),
    (MASKS, {"hidden_dim": 36}, "hidden_dim must be a multiple of 8, the mask head's .* but got 36; take 40"),
    (MASKS, {"hidden_dim": 8}, "hidden_dim must be at least 16 for a mask head .* 3 backbone levels, but got 8"),
    (
        MASKS[1:],
        {"backbone_levels": [2, 3, 4], "memory_level": 0},
        "needs a backbone level finer than its memory, .* raise memory",
    ),
    (MASKS[1:], {"backbone_levels": [4]}, "needs a backbone level finer than its memory, .* add one to backbone_levels"),
]


@pytest.mark.parametrize(("name", "settings", "message"), [(name, *case) for names, *case in CASES for name in names])
def test_what_makes_no_sense_is_one_error_with_the_way_out(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **(TINY | settings))


@pytest.mark.parametrize("build", [build_detr, build_deformable_detr])
@pytest.mark.parametrize(("kind", "value"), [(int, -9), (float, -0.5)])
def test_every_number_of_a_builder_has_a_rule(build, kind, value):
    names = [name for name, hint in get_type_hints(build).items() if hint is kind]
    assert len(names) >= (1 if kind is float else 7)
    assert set(names) <= set(inspect.signature(build).parameters)
    for name in names:
        with pytest.raises(ValueError, match=f"^{name} must be .*{value}"):
            build(**(TINY | {name: value}))


@pytest.mark.parametrize("backbone", ["resnet18", "swin_t"])
@pytest.mark.parametrize("levels", [(0, 1), (2, 2), (4, 3), (5,), ()])
def test_levels_that_a_backbone_does_not_have(backbone, levels):
    with pytest.raises(ValueError, match=r"^backbone_levels must be one or more of 1, 2, 3, 4, each once") as error:
        build_backbone(backbone, levels=levels)
    assert ("level 0 (stride 2) is for backbone=small" in str(error.value)) == (0 in levels)


@pytest.mark.parametrize("levels", [(2, 2), (4, 3), (5,), ()])
def test_levels_that_a_network_of_timm_does_not_have(levels):
    with pytest.raises(ValueError, match=r"^backbone_levels must be one or more of 0, 1, 2, 3, 4, each once"):
        build_backbone("resnext50_32x4d", levels=levels)


@pytest.mark.parametrize("num_heads", [0, -8])
def test_a_mask_head_without_attention_maps(num_heads):
    with pytest.raises(ValueError, match=f"num_heads must be at least 1, but got {num_heads}"):
        MaskHead(dim=32, feature_channels=(8, 8, 8), num_heads=num_heads)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("hidden_dim", [16, 40, 96])
def test_widths_that_are_no_power_of_two_have_masks(name, hidden_dim):
    model = build_model(name, **(TINY | {"hidden_dim": hidden_dim})).eval()
    with torch.no_grad():
        output = model(*pad_images([torch.randn(3, 64, 64)]))
        masks = model.segment(output, [torch.tensor([0, 2])])[0]
    assert masks.shape == (2, 16, 16)
    assert masks.isfinite().all()


@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256, 384])
def test_groups_of_published_widths_are_those_of_the_paper(dim):
    norms = MaskHead(dim=dim, feature_channels=(8, 8, 8)).norms
    assert [norm.num_groups for norm in norms] == [min(8, norm.num_channels) for norm in norms]

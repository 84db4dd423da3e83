"""Every panoptic model becomes a file that computes what the model does."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from exported.tiny_models import FAMILIES, SETTINGS, TABLE, assert_same, lively, pictures, remerged
from torch import nn

import panoptic_detr as pd
from panoptic_detr.exported import engines, parts, write
from panoptic_detr.exported.parity import Pair
from panoptic_detr.models import tracing
from panoptic_detr.models.backbones import timm as timm_backbone
from panoptic_detr.weights import archives

timm_swin = pytest.importorskip("timm.models.swin_transformer")
BOTTLENECKS = "resnet bottleneck 1x8 1x16 2x32 1x64 stem 8"


def small_swin(_timm, name, _pretrained, options):
    """In the place of timm's: both sizes of Swin, one of whose stages has shifted windows."""
    width, depths = (8, (2, 1, 1, 1)) if "tiny" in name else (16, (1, 2, 1, 1))
    sizes = {"img_size": 64, "window_size": 2, "embed_dim": width, "depths": depths, "num_heads": (1, 2, 2, 4)}
    return timm_swin.SwinTransformer(**sizes, **options), None


def backbone_of(name: str) -> str:
    """A network of the kind that a model has, but small."""
    kinds = {
        "swin_t": "swin_t",
        "swin_l": "swin_l",
        "dc5": "resnet18",
        "r101": BOTTLENECKS,
        "r50": "small",
    }
    return next(small for word, small in kinds.items() if word in name)


@pytest.mark.parametrize("name", [name for name in pd.list_models() if name.endswith("_panoptic") and name not in FAMILIES])
def test_every_model_can_be_exported(tmp_path, monkeypatch, name):
    """The families above in all their forms; the file computes what the model does, at a size that it was not recorded with."""
    monkeypatch.setattr(timm_backbone, "_create", small_swin)
    small = {"num_queries": 6, "decoder_layers": 1 if "_refine" not in name else 2, "hidden_dim": 16}
    predictor = pd.Predictor(lively(name, backbone=backbone_of(name), **small), TABLE, settings=SETTINGS)
    content = write.make_content(write.opened_source(predictor), predictor, ".onnx", size=None, precision="fp32", raw=False)
    found = Pair(write.opened_source(predictor), tmp_path / "file.onnx", content, raw=False).compare(pictures(1, 96, 130)[0])
    assert found.logits < 1e-3
    assert found.boxes < 1e-4
    assert 0 < found.masks < 1e-2


def test_a_hundred_masks_and_large_pictures(tmp_path):
    """One file for 96 x 96, all of a hundred queries kept, and 800 x 1066."""
    settings = replace(SETTINGS, threshold=0.0)
    predictor = pd.Predictor(lively("detr_r50_panoptic", num_queries=100, hidden_dim=16), TABLE, settings=settings)
    path = tmp_path / "file.onnx"
    content = write.make_content(write.opened_source(predictor), predictor, ".onnx", size=None, precision="fp32", raw=False)
    write.write_files(path, content)
    file = pd.load_model(path, device="cpu")
    for height, width, masks in ((96, 96, 100), (800, 1066, 3)):
        picture = pictures(1, height, width, seed=1)[0]
        file.settings = replace(settings, max_segments=masks)
        (places,) = file.run(picture[None], ["mask_places"])
        assert len(places) == masks
        own, (exact,) = file(picture), remerged(file, [picture])
        assert own.segment_map.shape == (height, width)
        assert_same(own, exact, exact=False)


def test_group_normalisation_by_products_is_the_same():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 12, 7, 9) * 3 + 20 * torch.randn(1, 12, 1, 1)
    assert torch.allclose(parts.NormByProducts(norm)(x), norm(x), atol=1e-4)


def test_files_compute_no_outputs_of_earlier_layers():
    model = lively("detr_r50")
    images, padding = torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool)
    with torch.no_grad():
        all_layers = model(images, padding)
        with tracing.last_layer():
            last = model(images, padding)
    assert (len(all_layers.logits), len(last.logits)) == (2, 1)
    assert torch.equal(all_layers.logits[-1:], last.logits)
    assert torch.equal(all_layers.boxes[-1:], last.boxes)


def test_every_kind_of_file_is_known_everywhere():
    assert set(write.KINDS) == set(engines.KINDS) == set(archives.EXPORTED)
    assert {kind.name for kind in write.KINDS.values()} == set(get_args(write.FileFormat))

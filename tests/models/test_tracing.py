"""What `torch.export` records of a model holds for other sizes and for padded batches."""

import pytest
import torch
from torch.export import Dim

import panoptic_detr as pd
from panoptic_detr.models import tracing
from panoptic_detr.models.masks.pixels import pool
from panoptic_detr.models.position_encoding import has_padding

TINY = {"num_labels": 3, "backbone": "small", "hidden_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 16}


def test_an_exported_graph_holds_for_other_sizes_and_padding():
    torch.manual_seed(0)
    model = pd.build_model("detr_r50_panoptic", num_queries=4, **TINY).eval()
    images, padding = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC})
    with torch.no_grad():
        program = torch.export.export(model, (images, padding), dynamic_shapes=axes, strict=False)
        images, padding = torch.randn(3, 3, 100, 70), torch.zeros(3, 100, 70, dtype=torch.bool)
        padding[1, 60:] = padding[2, :, 30:] = True
        traced, wanted = program.module()(images, padding), model(images, padding)
    torch.testing.assert_close(traced.logits, wanted.logits)
    torch.testing.assert_close(traced.boxes, wanted.boxes)
    torch.testing.assert_close(traced.memory.features, wanted.memory.features)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("detr_r50_panoptic", {"num_queries": 4}, [(2, 96, 128), (3, 130, 70)]),
        ("deformable_detr_r50", {"num_queries": 4}, [(2, 96, 128)]),
        ("mask_detr_r50_panoptic", {"num_queries": 6, "stuff_labels": [1, 2]}, [(2, 96, 128)]),
    ],
)
def test_models_compile_to_one_graph(name, options, sizes):
    """Whole (`fullgraph`), and for two sizes and batches without a second one."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = pd.build_model(name, **TINY, **options).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=len(sizes) > 1)
    for batch, height, width in sizes:
        images, padding = torch.randn(batch, 3, height, width), torch.zeros(batch, height, width, dtype=torch.bool)
        padding[1, 60:] = padding[0, :, 40:] = True
        with torch.no_grad():
            found, wanted = compiled(images, padding), model(images, padding)
        for of in ("logits", "boxes"):
            torch.testing.assert_close(getattr(found, of), getattr(wanted, of))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_pooling_by_products_is_adaptive_pooling(monkeypatch):
    maps = torch.randn(2, 3, 33, 50)
    for size in ((17, 25), (9, 13), (33, 50)):
        wanted = pool(maps, size)
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        torch.testing.assert_close(pool(maps, size), wanted, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()


def test_tracers_are_told_of_padding_unless_there_is_none(monkeypatch):
    padding = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert not has_padding(padding)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert has_padding(padding)
    with tracing.unpadded():
        assert not has_padding(padding)
    assert has_padding(padding)

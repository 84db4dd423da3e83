import numpy as np
import pytest
import torch
from torch.nn import functional as F

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import AttentionError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.visualization.attention import (
    Sampling,
    boxes_of_queries,
    draw_look,
    draw_mask_attention,
    draw_object_attention,
    draw_point_attention,
    draw_sampling,
    heat,
    look,
)
from panoptic_detr.zoo import build_model

TINY = {"backbone": "resnet18", "hidden_dim": 32, "encoder_layers": 2, "decoder_layers": 2, "ffn_dim": 32, "num_queries": 6}
TABLE = CategoryTable.from_coco([{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}])


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def detr():
    torch.manual_seed(0)
    return build_model("detr_r50_panoptic", num_labels=2, **TINY).eval()


@pytest.fixture(scope="module")
def deformable():
    torch.manual_seed(0)
    return build_model("deformable_detr_r50_panoptic", num_labels=2, **TINY).eval()


def prediction(queries):
    segment_map = np.ones((64, 96), np.int32)
    segment_map[:, 48:] = 2
    segments = [Segment(i + 1, i + 1, i == 0, 0.9, 3072, (48 * i, 0, 48, 64), query=q) for i, q in enumerate(queries)]
    return PanopticSegmentation(segment_map, segments, TABLE)


def attended(weights, attention, value):
    """What an attention module gives if its weights are (M, N, S), to compare with what it gave."""
    dim = value.shape[-1]
    v = F.linear(value, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
    heads = v.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)  # (M, S, d)
    return attention.out_proj((weights @ heads).transpose(0, 1).flatten(1))


def test_weights_are_those_that_the_model_used(image):
    torch.manual_seed(0)
    model = build_model("detr_r50", num_labels=2, **TINY).eval()
    for layer in [*model.encoder.layers, *model.decoder.layers]:  # one head, so that the mean over heads is that head
        layer.self_attn.num_heads = 1
        if hasattr(layer, "cross_attn"):
            layer.cross_attn.num_heads = 1
    results = {}
    modules = {"encoder": model.encoder.layers[1].self_attn, "decoder": model.decoder.layers[1].cross_attn}
    hooks = [
        m.register_forward_hook(lambda m, args, out, name=name: results.update({name: (args, out)}))
        for name, m in modules.items()
    ]
    seen = look(model, image)
    for hook in hooks:
        hook.remove()
    height, width = seen.shapes[0]
    maps = torch.from_numpy(seen.encoder_attention([(0.9, 0.6)]))
    cell = int(0.6 * height) * width + int(0.9 * width)
    args, out = results["encoder"]
    with torch.no_grad():
        torch.testing.assert_close(attended(maps.flatten(1)[None], modules["encoder"], args[2][0])[0], out[0, cell])
        args, out = results["decoder"]
        maps = torch.from_numpy(seen.decoder_attention([4, 1]))
        torch.testing.assert_close(attended(maps.flatten(1)[None], modules["decoder"], args[2][0]), out[0, [4, 1]])


def test_maps_have_the_shape_of_the_memory_and_sum_to_one(detr, image):
    seen = look(detr, image)
    assert seen.shapes == [(4, 6)]
    for maps in (seen.encoder_attention([(0.0, 0.0), (0.99, 0.99)], layer=0), seen.decoder_attention([2, 5])):
        assert maps.shape == (2, 4, 6)
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-5)
    masks = seen.mask_attention([0, 3, 5])
    assert masks.shape == (3, 8, 4, 6)
    np.testing.assert_allclose(masks.sum((1, 2, 3)), 1, atol=1e-5)
    assert boxes_of_queries(seen.output).shape == (6, 4)


def test_looking_leaves_no_hooks_and_changes_no_output(detr, image):
    seen = look(detr, image)
    assert not any(module._forward_pre_hooks for module in detr.modules())
    with torch.no_grad():
        plain = detr(image, torch.zeros(1, 128, 192, dtype=torch.bool))
    assert torch.equal(plain.logits, seen.output.logits)


def test_untrained_sampling_points_surround_the_reference(deformable, image):
    seen = look(deformable, image)
    reference = seen.decoder_inputs[-1][1][0, 2, 0].numpy()  # level 0, (x, y)
    (sampling,) = seen.decoder_sampling([2])
    heads, levels, points = 8, 4, 4
    assert sampling.points.shape == (heads * levels * points, 2)
    assert sampling.weights.sum() == pytest.approx(heads, rel=1e-5)
    np.testing.assert_allclose(sampling.points.mean(0), reference[:2], atol=1e-4)
    height, width = seen.shapes[0]
    first = sampling.points.reshape(heads, levels, points, 2)[0, 0]
    np.testing.assert_allclose((first - reference[:2]) * [width, height], [[k, 0] for k in (1, 2, 3, 4)], atol=1e-3)


def test_questions_without_an_answer_are_refused(detr, deformable, image):
    plain, sampled = look(detr, image), look(deformable, image)
    with pytest.raises(AttentionError, match=r"the encoder has 2 layer\(s\); there is no layer 2"):
        plain.encoder_attention([(0.5, 0.5)], layer=2)
    with pytest.raises(AttentionError, match="attends to every cell"):
        plain.decoder_sampling([0])
    with pytest.raises(AttentionError, match="this decoder is deformable"):
        sampled.decoder_attention([0])
    with pytest.raises(AttentionError, match="this encoder is deformable"):
        sampled.encoder_attention([(0.5, 0.5)])
    with pytest.raises(AttentionError, match="a detector without a mask head"):
        look(detr.detector, image).mask_attention([0])
    with pytest.raises(AttentionError, match="one image without padding at a time, but got 2"):
        look(detr, image.expand(2, -1, -1, -1))
    detr.train()
    with pytest.raises(AttentionError, match="training mode"):
        look(detr, image)
    detr.eval()


def test_a_model_without_encoder_still_has_the_rest(image):
    model = build_model("detr_r50_panoptic", num_labels=2, **{**TINY, "encoder_layers": 0}).eval()
    seen = look(model, image)
    assert not seen.has_encoder_maps
    drawn = draw_look(np.zeros((64, 96), np.uint8), prediction([1, 2]), seen)
    assert sorted(drawn) == ["decoder", "masks"]


def test_all_pictures_of_a_look(detr, deformable, image):
    picture = np.full((64, 96, 3), 90, np.uint8)
    drawn = draw_look(picture, prediction([1, 2]), look(detr, image), points=[(0.2, 0.2), (0.8, 0.8)])
    assert sorted(drawn) == ["decoder", "encoder", "masks"]
    assert drawn["decoder"].shape == picture.shape
    sampled = draw_look(picture, prediction([1, 2]), look(deformable, image), scale=2)
    assert sorted(sampled) == ["decoder", "masks"]
    assert sampled["decoder"].shape == (128, 192, 3)
    nothing = PanopticSegmentation(np.zeros((64, 96), np.int32), [], TABLE)
    assert list(draw_look(picture, nothing, look(detr, image))) == ["encoder"]


def test_heat_is_bright_where_attention_is():
    attention = np.zeros((4, 6))
    attention[1, 4] = 1
    drawn = heat(np.full((64, 96, 3), 100, np.uint8), attention).astype(int)
    assert drawn[24, 72].sum() > 2 * drawn[60, 5].sum()
    y, x = np.unravel_index(drawn.sum(-1).argmax(), (64, 96))
    assert abs(y - 24) < 8
    assert abs(x - 72) < 8


def test_objects_get_their_own_colour_and_points_are_marked():
    picture = np.full((64, 96, 3), 100, np.uint8)
    attention = np.zeros((2, 4, 6))
    attention[0, 0, 0], attention[1, 3, 5] = 1, 1
    colors = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    drawn = draw_object_attention(picture, attention, colors)
    assert drawn[4, 4, 0] > 2 * drawn[4, 4, 2]
    assert drawn[60, 90, 2] > 2 * drawn[60, 90, 0]
    assert (drawn[30, 48] == 70).all()
    marked = draw_point_attention(picture, attention, [(0.25, 0.5), (0.75, 0.5)])
    assert (marked == (213, 94, 0)).all(-1).sum() > 50


def test_sampling_dots_grow_with_the_weight_and_masks_name_their_share():
    picture = np.zeros((200, 200, 3), np.uint8)
    sampling = Sampling(np.array([[0.25, 0.5], [0.75, 0.5], [1.5, 0.5]]), np.array([0.9, 0.1, 0.5]))
    drawn = draw_sampling(picture, [sampling], np.array([[250, 200, 10]], np.uint8))
    full = (drawn == (250, 200, 10)).all(-1)
    assert full[:, :100].sum() > full[:, 100:].sum() > 0
    maps = np.full((8, 4, 6), 1 / 192)
    assert draw_mask_attention(picture, maps).shape[1] > 4 * 200
    with_object = draw_mask_attention(picture, maps, box_cxcywh=np.array([0.5, 0.5, 0.5, 0.5]), name="cat")
    assert with_object.shape[0] > 3 * 200, "three rows of three"
    first = with_object[: with_object.shape[0] // 3, : with_object.shape[1] // 3]
    assert (first[60:] == 0).all(-1).any(), "the plain image"
    assert (first[:, 80:120] == 255).all(-1).sum() > 60, "the box's sides above and below"

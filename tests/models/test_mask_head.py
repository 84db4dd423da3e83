"""The mask head on chosen queries equals the head on all of them, in any number, with padding, in chunks."""

import pytest
import torch
from torch.nn import functional as F

from panoptic_detr.models import mask_head
from panoptic_detr.models.mask_head import MaskHead, cells_outside_boxes
from panoptic_detr.structures import DetectorOutput, FeatureLevel

DIM, HEADS, QUERIES = 32, 8, 7


@pytest.fixture
def head():
    return MaskHead(dim=DIM, feature_channels=(12, 16, 20), num_heads=HEADS, output_bias=0.5)


def make_output(batch=2, padded=True):
    def level(channels, size, stride):
        mask = torch.zeros(batch, size, size + 2, dtype=torch.bool)
        if padded:
            mask[-1, :, -(size // 2) :] = True
        return FeatureLevel(torch.randn(batch, channels, size, size + 2), mask, stride)

    memory = level(DIM, 4, 32)
    return DetectorOutput(
        logits=torch.randn(1, batch, QUERIES, 4),
        boxes=torch.rand(1, batch, QUERIES, 4),
        decoder_states=torch.randn(batch, QUERIES, DIM),
        memory=memory,
        projected=torch.randn_like(memory.features),
        features=(level(12, 32, 4), level(16, 16, 8), level(20, 8, 16)),
    )


def plain_masks(head, output, image, query):
    """The paper's head for one query, written out: attention maps joined to the image, every convolution on the whole."""
    a = head.attention
    q = F.linear(output.decoder_states[image, query], a.q_linear.weight, a.q_linear.bias).view(HEADS, -1)
    k = F.linear(output.memory.features[image].flatten(1).T, a.k_linear.weight, a.k_linear.bias).view(-1, HEADS, DIM // HEADS)
    scores = torch.einsum("mc,nmc->mn", q * (DIM / HEADS) ** -0.5, k)
    scores[:, output.memory.padding_mask[image].flatten()] = -torch.inf
    maps = scores.flatten().softmax(0).view(1, HEADS, *output.projected.shape[-2:])
    x = torch.cat([output.projected[image, None], maps], 1)
    for index, (conv, norm) in enumerate(zip(head.convs, head.norms, strict=True)):
        if index >= 2:
            finer = head.adapters[index - 2](output.features[4 - index].features[image, None])
            x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
        x = F.relu(norm(conv(x)))
    return head.out(x)[0, 0]


def test_chosen_queries_equal_the_plain_computation(head):
    output = make_output()
    chosen = [torch.tensor([5, 0, 2]), torch.tensor([6])]
    masks = head(output, chosen)
    assert [m.shape for m in masks] == [(3, 32, 34), (1, 32, 34)]
    for image, queries in enumerate(chosen):
        for row, query in enumerate(queries):
            torch.testing.assert_close(masks[image][row], plain_masks(head, output, image, query), rtol=1e-4, atol=1e-5)


def test_few_queries_equal_all_queries(head):
    output = make_output()
    everything = head(output, [torch.arange(QUERIES)] * 2)
    few = head(output, [torch.tensor([3]), torch.tensor([1, 6])])
    torch.testing.assert_close(few[0], everything[0][[3]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few[1], everything[1][[1, 6]], rtol=1e-4, atol=1e-5)


def test_chunks_change_nothing(head, monkeypatch):
    output = make_output()
    queries = [torch.arange(QUERIES)] * 2
    whole = head(output, queries)
    monkeypatch.setattr(mask_head, "CHUNK_CELLS", 3 * 32 * 34)
    for one, other in zip(whole, head(output, queries), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_memory_is_bounded_by_chunks(head, monkeypatch):
    seen = []
    original = MaskHead._segment

    def spy(self, states, *rest):
        seen.append(len(states))
        return original(self, states, *rest)

    monkeypatch.setattr(MaskHead, "_segment", spy)
    monkeypatch.setattr(mask_head, "CHUNK_CELLS", 2 * 32 * 34)
    head(make_output(), [torch.arange(QUERIES), torch.arange(4)])
    assert max(seen) == 2
    assert sum(seen) == QUERIES + 4


def test_no_chosen_query_gives_no_mask_but_a_gradient_path(head):
    nothing = torch.zeros(0, dtype=torch.int64)
    masks = head(make_output(), [nothing, nothing])
    assert [m.shape for m in masks] == [(0, 32, 34)] * 2
    torch.cat(masks).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


def test_one_image_without_queries_among_others(head):
    output = make_output()
    masks = head(output, [torch.zeros(0, dtype=torch.int64), torch.tensor([2])])
    assert masks[0].shape == (0, 32, 34)
    torch.testing.assert_close(masks[1][0], plain_masks(head, output, 1, 2), rtol=1e-4, atol=1e-5)


def test_attention_ignores_padding_and_sums_to_one(head):
    output = make_output()
    maps = head.attention(
        output.decoder_states[1], head.attention.keys(output.memory.features)[1, None], output.memory.padding_mask[1, None]
    )
    assert maps[..., output.memory.padding_mask[1]].abs().max() == 0
    torch.testing.assert_close(maps.flatten(1).sum(1), torch.ones(QUERIES))


def test_scaled_maps_have_the_stated_scale():
    head = MaskHead(dim=DIM, feature_channels=(12, 16, 20), scale_maps=True)
    output = make_output(padded=False)
    maps = head.attention(
        output.decoder_states[0], head.attention.keys(output.memory.features)[0, None], output.memory.padding_mask[0, None]
    )
    torch.testing.assert_close(maps.mean((1, 2, 3)), torch.ones(QUERIES))


def test_cells_outside_boxes_by_hand():
    padding = torch.zeros(1, 4, 8, dtype=torch.bool)
    padding[:, :, 4:] = True  # 4 x 4 cells of image, each a quarter of it
    boxes = torch.tensor([[0.125, 0.125, 0.01, 0.01], [0.5, 0.5, 1.0, 0.01], [0.5, 0.5, 1.0, 1.0]])
    inside = ~cells_outside_boxes(boxes, padding) & ~padding
    assert inside[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # its own cell and the neighbours
    assert inside[1].sum(1).tolist() == [0, 4, 4, 0]
    assert inside[2].sum() == 16


def test_queries_attend_inside_of_their_boxes_only():
    head = MaskHead(dim=DIM, feature_channels=(12, 16, 20), num_heads=HEADS, scale_maps=True, inside_boxes=True)
    output = make_output()
    images, queries = torch.tensor([0, 0, 1]), torch.tensor([2, 6, 3])
    closed = head.closed_cells(output, images, queries)
    assert 0 < closed[0].float().mean() < 1
    keys = head.attention.keys(output.memory.features)[images]
    maps = head.attention(output.decoder_states[images, queries], keys, closed)
    assert (maps.amax(1)[closed] == 0).all()
    assert (maps.amin(1)[~closed] > 0).all()
    torch.testing.assert_close(maps.sum((1, 2, 3)) / (HEADS * (~closed).sum((1, 2))), torch.ones(3))
    alone = head(output, [torch.tensor([6]), torch.tensor([], dtype=torch.long)])[0]
    torch.testing.assert_close(alone[0], head(output, [torch.tensor([2, 6]), torch.tensor([3])])[0][1], rtol=1e-4, atol=1e-5)


def test_boxes_tell_alike_things_apart():
    head = MaskHead(dim=DIM, feature_channels=(12, 16, 20), num_heads=HEADS, inside_boxes=True)
    output = make_output(batch=1, padded=False)
    output.decoder_states[:] = output.decoder_states[:, :1]  # all queries have the same state
    output.boxes[0, 0, :2] = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])
    masks = head(output, [torch.tensor([0, 1])])[0]
    assert not torch.allclose(masks[0], masks[1], atol=1e-3)


def test_wrong_number_of_lists_is_named(head):
    with pytest.raises(ValueError, match="expected chosen queries for 2 images, but got 1 lists"):
        head(make_output(), [torch.tensor([0])])

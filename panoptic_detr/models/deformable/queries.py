"""Where a deformable decoder's queries come from: learned, proposed by the encoder's tokens (two-stage), or mixed.

The one-to-many group of hybrid matching (H-DETR, section 3.2) is simply the queries after the first `num_queries`; they are
asked for in training only.
"""

import torch
from torch import Tensor, nn

from panoptic_detr.boxes import whole_image_box
from panoptic_detr.models.deformable.heads import PredictionHeads, shift_boxes
from panoptic_detr.models.deformable.transformer import Queries, TokenPyramid
from panoptic_detr.models.layers import exact_linear
from panoptic_detr.models.position_encoding import sine_of_boxes
from panoptic_detr.models.tracing import at_most
from panoptic_detr.structures import Predictions


class LearnedQueries(nn.Module):
    """Learned position and content per query; the reference point is linear in the position (Deformable DETR, section 4.1).

    Args:
        hidden_dim: width D.
        num_queries: learned queries, the one-to-many ones included.
    """

    def __init__(self, hidden_dim: int, num_queries: int) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)
        self.reference_points = nn.Linear(hidden_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch: int, groups: list[int]) -> Queries:
        """Queries of all groups, the same for each of the `batch` images."""
        pairs = self.query_embed.weight[: sum(groups)].expand(batch, -1, -1)  # (B, Q, 2 D)
        positions, content = pairs.chunk(2, dim=-1)
        references = exact_linear(self.reference_points, positions).sigmoid()  # (B, Q, 2)
        return Queries(content, positions, references, groups)


class Proposals(nn.Module):
    """Boxes of every token of the encoder, and the best of them as queries (Deformable DETR, section 4.2, "two-stage").

    A token proposes an offset to an anchor at its own centre, of size `anchor_size * 2^level`. Anchors whose coordinates leave
    [0.01, 0.99] propose nothing: their box is the point (1, 1), and they are chosen only where an image has no other token
    left, in which case the whole image is their reference.

    Args:
        hidden_dim: width D, a multiple of 4; published models use 256, of which a quarter encodes each box coordinate twice.
        anchor_size: side of the first level's anchors, as a fraction of the image.
        num_content: learned content queries (mixed query selection of H-DETR); 0 derives the content from the box as well.
    """

    def __init__(self, hidden_dim: int, anchor_size: float = 0.05, num_content: int = 0) -> None:
        super().__init__()
        self.anchor_size = anchor_size
        self.enc_output = nn.Linear(hidden_dim, hidden_dim)
        self.enc_output_norm = nn.LayerNorm(hidden_dim)
        self.pos_trans = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.pos_trans_norm = nn.LayerNorm(2 * hidden_dim)
        self.query_embed = nn.Embedding(num_content, hidden_dim) if num_content else None
        for linear in (self.enc_output, self.pos_trans):
            nn.init.xavier_uniform_(linear.weight)

    def propose(self, memory: Tensor, tokens: TokenPyramid, heads: PredictionHeads, head: int) -> Predictions:
        """Score and place every token: logits (1, B, N, C) and boxes (1, B, N, 4), by the given one of the heads."""
        anchors, valid = self.anchors(tokens)
        states = self.enc_output_norm(self.enc_output(memory.masked_fill(~valid[..., None], 0)))
        boxes = shift_boxes(anchors, heads.offsets(states, head))
        return Predictions(heads.logits(states, head)[None], boxes.masked_fill(~valid[..., None], 1)[None])

    def anchors(self, tokens: TokenPyramid) -> tuple[Tensor, Tensor]:
        """Anchor boxes (B, N, 4) in the unpadded image, clamped to [0.01, 0.99], and which are valid, (B, N) bool."""
        levels = [
            torch.full((h * w, 2), self.anchor_size * 2**index, device=tokens.centres.device)
            for index, (h, w) in enumerate(tokens.shapes)
        ]
        sizes = torch.cat(levels).expand(tokens.centres.shape[0], -1, -1)  # (B, N, 2)
        anchors = torch.cat([tokens.centres, sizes.to(tokens.centres)], dim=-1)
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & ~tokens.padding_mask
        return anchors.clamp(0.01, 0.99), valid

    def forward(self, proposals: Predictions, tokens: TokenPyramid, groups: list[int]) -> Queries:
        """Turn the best proposals into queries; where there are fewer tokens than queries, all of them.

        Args:
            proposals: of every token.
            tokens: the pyramid.
            groups: wanted sizes of the groups; the first takes the best.

        Returns:
            Queries whose references carry no gradient.
        """
        _, valid = self.anchors(tokens)
        ranks = proposals.logits[0, :, :, 0].detach().masked_fill(~valid, -torch.inf)  # (B, N)
        chosen = ranks.topk(at_most(sum(groups), ranks.shape[1]), dim=1).indices  # (B, Q)
        boxes = proposals.boxes[0].detach().gather(1, chosen[..., None].expand(-1, -1, 4))  # (B, Q, 4)
        references = torch.where(valid.gather(1, chosen)[..., None], boxes, whole_image_box(boxes))
        positions, content = self._embed(references)
        return Queries(content, positions, references, groups if len(groups) == 1 else shrink_groups(groups, chosen.shape[1]))

    def _embed(self, references: Tensor) -> tuple[Tensor, Tensor]:
        """Position term and content of references (B, Q, 4): (B, Q, D) each."""
        encoded = sine_of_boxes(references, self.pos_trans.in_features // 4).to(self.pos_trans.weight.dtype)  # (B, Q, 2 D)
        positions, content = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, dim=-1)
        if self.query_embed is None:
            return positions, content
        return positions, self.query_embed.weight[: references.shape[1]].expand(references.shape[0], -1, -1)


def shrink_groups(groups: list[int], available: int) -> list[int]:
    """Fill the groups in order with what is available: ([100, 200], 150) gives [100, 50], ([100, 200], 80) gives [80]."""
    sizes = []
    for size in groups:
        sizes.append(min(size, available))
        available -= sizes[-1]
    return [size for size in sizes if size]

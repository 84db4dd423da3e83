"""A detector's things before merging, as AP wants them: boxes, scores and, from a panoptic model, masks that may overlap."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco.defects import ImageId
from panoptic_detr.evaluation.coco_ap import AveragePrecision, Rle, encode_masks
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import Batch, DetectorOutput

MASKS_AT_ONCE = 8


@dataclass(frozen=True)
class ThingPredictions:
    """The best things of one image."""

    scores: Tensor  # (N,) float32 probabilities, falling
    category_ids: Tensor  # (N,) int64
    queries: Tensor  # (N,) int64 object query of each; with sigmoid classes a query may stand for several categories
    boxes: Tensor  # (N, 4) float32 corners in pixels of the original image


def find_things(output: DetectorOutput, batch: Batch, categories: CategoryTable, most: int = 100) -> list[ThingPredictions]:
    """The most probable things of each image, however improbable (AP weighs them by their scores).

    With a no-object slot every query stands for its best real class (DETR paper, section 4.1); queries whose best class is
    stuff are left out. With sigmoid classes the best of all pairs of query and thing category are taken.

    Args:
        output: of the model for the batch.
        batch: for the original sizes.
        categories: what the labels mean.
        most: things per image.
    """
    known = torch.tensor(sorted(categories.by_label), device=output.logits.device)
    ids = torch.tensor([categories.by_label[int(label)].id for label in known], device=known.device)
    isthing = torch.tensor([categories.by_label[int(label)].isthing for label in known], device=known.device)
    probabilities = output.probabilities()[..., known]  # (B, Q, categories)
    if output.no_object:
        best = probabilities == probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.where(best, -1.0)
    probabilities = probabilities.where(isthing, -1.0)
    boxes = output.boxes_xyxy()  # (B, Q, 4)
    return [
        _best_things(probabilities[i], ids, boxes[i] * _corners(size, boxes), most)
        for i, size in enumerate(batch.original_sizes)
    ]


def _best_things(probabilities: Tensor, ids: Tensor, boxes: Tensor, most: int) -> ThingPredictions:
    """The best of (Q, categories) probabilities; negative ones do not count."""
    flat = probabilities.flatten()
    scores, places = flat.topk(min(most, len(flat)))
    places, scores = places[scores >= 0], scores[scores >= 0]
    queries = places // len(ids)
    return ThingPredictions(scores.cpu(), ids[places % len(ids)].cpu(), queries.cpu(), boxes[queries].cpu())


def _corners(size: tuple[int, int], like: Tensor) -> Tensor:
    height, width = size
    return like.new_tensor([width, height, width, height])


class LayerPrecision:
    """Box AP of the things that each decoder layer predicts, as they are and after non-maximum suppression.

    Args:
        categories: what the model's labels mean; those of published models are category ids, unlike a data set's.
    """

    def __init__(self, categories: CategoryTable) -> None:
        self.categories = categories
        self._scorers: dict[tuple[int, bool], AveragePrecision] = {}

    def update(self, image_id: ImageId, output: DetectorOutput, truth: PanopticSegmentation) -> None:
        """Add an image: the model's output for it alone, and what is right."""
        size = (truth.segment_map.shape[0], truth.segment_map.shape[1])
        batch = Batch(torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1), original_sizes=[size])
        for layer, (logits, boxes) in enumerate(zip(output.logits.split(1), output.boxes.split(1), strict=True)):
            (found,) = find_things(replace(output, logits=logits, boxes=boxes), batch, self.categories)
            rows, scores, category_ids = as_arrays(found)
            kept = batched_nms(found.boxes, found.scores, found.category_ids, 0.7).numpy()
            for nms, chosen in ((False, np.arange(len(scores))), (True, kept)):
                scorer = self._scorers.setdefault((layer, nms), AveragePrecision(truth.categories))
                scorer.update(image_id, rows[chosen], scores[chosen], category_ids[chosen], None, truth)

    def compute(self) -> list[tuple[float, float]]:
        """AP of each layer without and with the suppression, as fractions; 0 where there are no true things."""
        found = {key: scorer.compute().boxes.ap or 0.0 for key, scorer in sorted(self._scorers.items())}
        return [(found[layer, False], found[layer, True]) for layer in range(len(found) // 2)]


def encode_thing_masks(output: DetectorOutput, batch: Batch, things: list[ThingPredictions]) -> list[list[Rle]]:
    """One run-length encoded mask for each thing of each image, at its original size; a few are in memory at a time."""
    device = output.logits.device
    unique = [image.queries.unique(return_inverse=True) for image in things]
    logits = output.segment([queries.to(device) for queries, _ in unique])
    encoded = []
    for i, (_, places) in enumerate(unique):
        masks = [
            code for part in logits[i].split(MASKS_AT_ONCE) for code in encode_masks(resize_masks(part, batch, i).cpu().numpy())
        ]
        encoded.append([masks[place] for place in places.tolist()])
    return encoded


def resize_masks(logits: Tensor, batch: Batch, index: int) -> Tensor:
    """Mask logits (K, h, w) of an image, which cover the padded batch, as masks (K, H, W) of its original size.

    A mask is true where the logit, bilinear between cell centres, is positive.
    """
    (height, width), size, padded = batch.original_sizes[index], batch.sizes[index], batch.images.shape[-2:]
    rows = (torch.arange(height, device=logits.device) + 0.5) / height * (2 * size[0] / padded[0]) - 1
    columns = (torch.arange(width, device=logits.device) + 0.5) / width * (2 * size[1] / padded[1]) - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2)
    sampled = F.grid_sample(logits[None].float(), grid[None], padding_mode="border", align_corners=False)
    return sampled[0] > 0  # (K, H, W)


def as_arrays(things: ThingPredictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and category ids for `AveragePrecision.update`."""
    return things.boxes.numpy(), things.scores.numpy(), things.category_ids.numpy()

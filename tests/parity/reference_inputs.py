"""The inputs behind the recorded reference values: every weight and image is a function of its name, shape or seed.

The recorded numbers are what the public implementations of DETR, Deformable DETR and H-Deformable-DETR compute from these.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoptic_detr.structures import Target, pad_images

DATA = Path(__file__).parent / "data" / "models"
PADDED = {"sizes": ((256, 320), (200, 288)), "seeds": (11, 12)}
# Two-stage models rank the encoder's tokens: images without padding, whose ranking has no near ties.
RANKED = {
    "deformable_detr_r50_two_stage": {"sizes": ((256, 320), (256, 320)), "seeds": (54, 56)},
    "h_deformable_detr_r50_hybrid_branch": {"sizes": ((256, 320), (256, 320)), "seeds": (33, 40)},
}
GAINS = (
    (("in_proj_weight",), "", 1.5),
    (("q_linear.weight", "k_linear.weight"), "", 8.0),
    (("out_proj.weight", "output_proj.weight", "linear2.weight"), "encoder.layers", 0.1),
)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of a published checkpoint's entry."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(noise)
    if any(part in name for part in ("query_embed", "level_embed", "tgt_embed", "row_embed", "col_embed")):
        return noise
    if name.endswith("running_mean") or (len(shape) < 2 and not name.endswith("weight")):
        return np.float32(0.1) * noise
    if len(shape) < 2:
        return 1 + np.float32(0.1) * noise
    value = noise / np.float32(np.sqrt(np.prod(shape[1:])))
    for endings, inside, gain in GAINS:
        if name.endswith(endings) and inside in name:
            value = np.float32(gain) * value
    if name.endswith("mask_head.lay1.weight"):
        value[:, -8:] *= np.float32(100)  # attention maps are small; make them count
    return value


def state_dict(case: str) -> dict[str, Tensor]:
    """The case's published state dict; names of one shared tensor get one value."""
    shapes = json.loads((DATA / f"{case.removesuffix('_frozen')}.keys.json").read_text())
    path = DATA / f"{case}.aliases.json"
    aliases = json.loads(path.read_text()) if path.exists() else {}
    return {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.from_numpy(np.ascontiguousarray(weight(aliases.get(name, name), tuple(shape)), np.float32))
        for name, shape in shapes.items()
    }


def images(case: str) -> list[Tensor]:
    """The case's two normalised images: a coarse pattern of 32-pixel cells plus fine noise."""
    setting = RANKED.get(case, PADDED)
    return [_image(seed, *size) for seed, size in zip(setting["seeds"], setting["sizes"], strict=True)]


def batch(case: str) -> tuple[Tensor, Tensor]:
    """Both images zero-padded into one batch, and the padding mask."""
    return pad_images(images(case))


def targets(case: str, num_labels: int) -> list[Target]:
    """Five and three objects, whose regions are (overlapping) ellipses."""
    sizes = RANKED.get(case, PADDED)["sizes"]
    return [_target(index, size, count, num_labels) for index, (size, count) in enumerate(zip(sizes, (5, 3), strict=True))]


def expected(case: str) -> dict[str, np.ndarray]:
    """Recorded outputs."""
    return dict(np.load(DATA / f"{case}.npz"))


def expected_losses(case: str) -> dict:
    """Recorded losses, weights, total, gradient norms and matching."""
    return json.loads((DATA / f"{case}.losses.json").read_text())


def assert_close(found: Tensor, wanted: np.ndarray, atol: float = 1e-5) -> None:
    """Within 1e-4 relative plus 1e-5 absolute."""
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=atol)


def _image(seed: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(seed)
    cells = rng.standard_normal((3, -(-height // 32), -(-width // 32))).astype(np.float32)
    pattern = cells.repeat(32, axis=1).repeat(32, axis=2)[:, :height, :width]
    noise = rng.standard_normal((3, height, width)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(2 * pattern + 0.3 * noise))


def _target(index: int, size: tuple[int, int], count: int, num_labels: int) -> Target:
    rng = np.random.default_rng(100 + index)
    centres, extents = rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.1, 0.35, (count, 2))
    boxes = np.concatenate([centres, extents], 1).astype(np.float32)
    y, x = np.mgrid[: size[0], : size[1]]
    x, y = (x + 0.5) / size[1], (y + 0.5) / size[0]
    masks = np.stack([((x - cx) / (w / 2)) ** 2 + ((y - cy) / (h / 2)) ** 2 < 1 for cx, cy, w, h in boxes])
    labels = rng.integers(1, num_labels, (count,))
    return Target(torch.from_numpy(labels), torch.from_numpy(boxes), None, index, torch.from_numpy(masks))

"""A backbone's own mean and standard deviation: images come normalised with ImageNet's, and some networks want others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputStatistics(nn.Module):
    """Images from ImageNet's normalisation to another; its values travel with the weights.

    Weights that were saved without it were trained on ImageNet's normalisation: loading them makes it do nothing.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))
        self._register_load_state_dict_pre_hook(_nothing_where_absent)

    def use(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Give the network images normalised with this mean and standard deviation from now on."""
        own_std, own_mean = torch.tensor(std), torch.tensor(mean)
        self.scale.copy_(torch.tensor(IMAGENET_STD) / own_std)
        self.shift.copy_((torch.tensor(IMAGENET_MEAN) - own_mean) / own_std)

    def forward(self, images: Tensor, padding_mask: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) anew; padding (B, H, W) stays zero."""
        scale, shift = (value.to(images.dtype)[:, None, None] for value in (self.scale, self.shift))
        images = torch.addcmul(shift, images, scale)
        return images.masked_fill(padding_mask[:, None], 0) if bool(padding_mask.any()) else images


def _nothing_where_absent(state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    state_dict.setdefault(prefix + "scale", torch.ones(3))
    state_dict.setdefault(prefix + "shift", torch.zeros(3))

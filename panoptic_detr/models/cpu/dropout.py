"""Dropout whose random numbers are cheap on CPUs, where they would be a twentieth of a training step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VALUES_OF_BITS = 2**16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, in training through `drop`."""

    def forward(self, input: Tensor) -> Tensor:
        """Leave values out in training: any shape to the same."""
        return drop(input, self.p) if self.training and self.p else input


def drop(x: Tensor, share: float) -> Tensor:
    """Set a random share of the values to zero and scale the others up, so that the expectation stays (Srivastava et al. 2014).

    On CPUs 16 random bits decide about a value instead of 64; the share is then the nearest multiple of 2^-16.

    Args:
        x: any shape.
        share: in [0, 1).

    Returns:
        The shape of x.
    """
    if x.device.type != "cpu":
        return F.dropout(x, share)
    left_out = min(round(share * VALUES_OF_BITS), VALUES_OF_BITS - 1)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (bits >= left_out - VALUES_OF_BITS // 2).view(torch.uint8)  # a byte each is all that the backward pass needs
    return (x * kept).mul_(VALUES_OF_BITS / (VALUES_OF_BITS - left_out))

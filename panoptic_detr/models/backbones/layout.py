"""ResNets of any sizes, by a name that says them: "resnet basic 2x16 2x32 2x64 2x128 stem 16".

Four stages, each a number of blocks times their channels; blocks are "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3,
1x1, a quarter of the channels inside); the stem has 64 channels where it is not said. The networks of Hugging Face's
transformers can be of any such sizes; resnet18 to resnet101 have names of their own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones.resnet import RESNETS, Basic, Bottle

LAYOUT = "resnet "  # how such names begin
_NAME = re.compile(r"resnet (basic|bottleneck)((?: \d+x\d+){4})(?: stem (\d+))?")
_RESNET_WIDTHS = {Basic: (64, 128, 256, 512), Bottle: (256, 512, 1024, 2048)}


@dataclass(frozen=True)
class Layout:
    """Sizes of a ResNet: kind of block, blocks and channels of each stage, channels of the stem."""

    basic: bool
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int = 64

    @property
    def name(self) -> str:
        """What `build_backbone` calls such a network: resnet50 where it is one, otherwise the sizes."""
        block = Basic if self.basic else Bottle
        for known, (kind, depths) in RESNETS.items():
            if (kind, tuple(depths), _RESNET_WIDTHS[kind], 64) == (block, self.depths, self.widths, self.stem):
                return known
        stages = " ".join(f"{depth}x{width}" for depth, width in zip(self.depths, self.widths, strict=True))
        stem = f" stem {self.stem}" if self.stem != 64 else ""
        return f"{LAYOUT}{'basic' if self.basic else 'bottleneck'} {stages}{stem}"


def read_layout(name: str) -> Layout:
    """The sizes that a name says.

    Raises:
        InputError: it says none, or a stage without blocks or channels.
    """
    found = _NAME.fullmatch(name)
    pairs = [tuple(map(int, stage.split("x"))) for stage in found[2].split()] if found else []
    if not found or not all(0 < number < 10**4 for pair in pairs for number in pair) or found[3] == "0":
        raise InputError(
            f"backbone {name!r} begins as the sizes of a ResNet do, and says none; the form is 'resnet basic 2x64 2x128 2x256 "
            "2x512 stem 64': basic or bottleneck, and blocks x channels of four stages"
        )
    depths, widths = zip(*pairs, strict=True)
    return Layout(found[1] == "basic", depths, widths, int(found[3] or 64))


def layout_parts(layout: Layout, norm: Callable[[int], nn.Module]) -> dict[str, nn.Module]:
    """The modules of such a network in order, named as torchvision names a ResNet's."""
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, layout.stem, 7, stride=2, padding=3, bias=False),
        "bn1": norm(layout.stem),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    stages = zip(pairwise((layout.stem, *layout.widths)), layout.depths, strict=True)
    for number, ((inner, outer), depth) in enumerate(stages, start=1):
        strides = [1 if number == 1 else 2, *[1] * (depth - 1)]
        inputs = [inner, *[outer] * (depth - 1)]
        blocks = [_block(layout.basic, a, outer, stride, norm) for a, stride in zip(inputs, strides, strict=True)]
        parts[f"layer{number}"] = nn.Sequential(*blocks)
    for module in [module for part in parts.values() for module in part.modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return parts


def _block(basic: bool, inner: int, outer: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """A block that takes `inner` channels to `outer`; its shortcut is the identity where that can be."""
    shortcut = None
    if inner != outer or stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride=stride, bias=False), norm(outer))
    if basic:
        return Basic(inner, outer, stride=stride, downsample=shortcut, norm_layer=norm)
    narrow = max(1, outer // 4)
    block = Bottle(inner, narrow, stride=stride, downsample=shortcut, norm_layer=norm)
    block.conv3, block.bn3 = nn.Conv2d(narrow, outer, 1, bias=False), norm(outer)  # torchvision's has four times `narrow`
    return block


def dilate(stage: nn.Module) -> None:
    """Turn the stride of a stage of basic blocks into a dilation, as timm does: the stage keeps the size of its input.

    Args:
        stage: changed in place; its first convolution still looks at neighbours, all others at every second cell.
    """
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    for place, convolution in enumerate(convolutions):
        convolution.stride = (1, 1)
        if convolution.kernel_size == (3, 3) and place:
            convolution.dilation = convolution.padding = (2, 2)

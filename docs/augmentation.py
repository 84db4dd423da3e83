"""The pictures of augmentation.md: every kind of augmentation on the project's own drawn scenes.

.venv/bin/python docs/augmentation.py                # writes docs/images/augmentation/*.jpg, a few seconds
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.photographs import PhotoTransform
from panoptic_detr.data.scenes import write_scenes
from panoptic_detr.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Transform,
    crops_transform,
    scenes_transform,
    train_transform,
)
from panoptic_detr.images import save_picture
from panoptic_detr.structures import Sample
from panoptic_detr.visualization.draw import side_by_side

FOLDER = Path(__file__).resolve().parent / "images" / "augmentation"
SIZE = 160  # of a scene, in pixels
DRAWS = 5
STILL = {"horizontal_flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def photo(**settings: object) -> PhotoTransform:
    """The preset `photos` with nothing but the given settings."""
    still: dict[str, object] = {"window": (SIZE, SIZE), "scales": (1.0, 1.0), **STILL}
    return PhotoTransform(**{**still, **settings})  # type: ignore[arg-type]


KINDS: dict[str, Transform | PhotoTransform] = {
    "flip": photo(horizontal_flip=0.5),
    "jitter": photo(scales=(0.5, 2.0)),
    "rotation": photo(rotation=20.0),
    "colours": photo(brightness=0.4, contrast=0.4, saturation=0.6, hue=0.1),
    "blur": photo(blur=1.0),
    "copy_paste": photo(copy_paste=1.0),
    "mosaic": photo(scales=(0.6, 1.2), mosaic=1.0),
    "photos": PhotoTransform((SIZE, SIZE)),
    "crops": crops_transform(crop_size=SIZE, short_sides=(SIZE, 200, 240)),
    "scenes": scenes_transform(),
    "paper": train_transform(short_sides=(120, 140, 160), long_side=320, crop_short_sides=(120, 160), crop_sides=(80, 120)),
}


def drawn(sample: Sample) -> np.ndarray:
    """A normalised sample as a picture (H, W, 3) uint8; white lines are the borders of its segments, void is dark."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    picture = ((sample.image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    segment_map = sample.target.segment_map
    assert segment_map is not None
    ids = segment_map.numpy()
    border = np.zeros(ids.shape, dtype=bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    shown = np.where((ids == 0)[..., None], picture // 3, picture)
    shown[border] = 255
    return shown


def main() -> None:
    """Write one picture per kind: the scene as it is, and a few draws."""
    with tempfile.TemporaryDirectory() as root:
        write_scenes(root, count=12, size=SIZE, split="train")
        whole = CocoPanoptic.from_root(root, "train", transforms=Transform())
        for name, transform in KINDS.items():
            dataset = CocoPanoptic.from_root(root, "train", transforms=transform)
            pictures = [drawn(whole[3])]
            for epoch in range(DRAWS):  # every one draws other numbers
                dataset.set_epoch(epoch)
                pictures.append(drawn(dataset[3]))
            FOLDER.mkdir(parents=True, exist_ok=True)
            save_picture(FOLDER / f"{name}.jpg", side_by_side(pictures), quality=80)


if __name__ == "__main__":
    main()

"""The converters by name: other annotations to COCO-panoptic, and back.

Every converter streams image by image on all cores, and its output appears complete or not at all.
"""

from collections.abc import Callable

from panoptic_detr.data.convert.from_instances import coco_instances
from panoptic_detr.data.convert.from_labelme import labelme
from panoptic_detr.data.convert.from_pairs import cityscapes, instance_masks, semantic_instance
from panoptic_detr.data.convert.output import Conversion
from panoptic_detr.data.convert.to_others import to_instances, to_semantic

FORMATS: dict[str, Callable[..., Conversion]] = {
    "coco-instances": coco_instances,
    "semantic-instance": semantic_instance,
    "cityscapes": cityscapes,
    "instance-masks": instance_masks,
    "labelme": labelme,
    "to-instances": to_instances,
    "to-semantic": to_semantic,
}

"""The converters by name: other annotations to COCO-panoptic, and back.

Every converter streams image by image on all cores, and its output appears complete or not at all. A new one is a module
beside `labelme`, and a line here.
"""

from collections.abc import Callable

from panoptic_detr.data.convert.back import to_instances, to_semantic
from panoptic_detr.data.convert.instances import coco_instances
from panoptic_detr.data.convert.labelme import labelme
from panoptic_detr.data.convert.output import Conversion
from panoptic_detr.data.convert.pairs import cityscapes, instance_masks, semantic_instance

FORMATS: dict[str, Callable[..., Conversion]] = {
    "coco-instances": coco_instances,
    "semantic-instance": semantic_instance,
    "cityscapes": cityscapes,
    "instance-masks": instance_masks,
    "labelme": labelme,
    "to-instances": to_instances,
    "to-semantic": to_semantic,
}

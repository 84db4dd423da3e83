"""The doctor: every defect of a data set by name, and the certain ones mended."""

from panoptic_detr.data.coco.defects import show
from panoptic_detr.data.doctor.examine import find_splits
from panoptic_detr.data.doctor.files import raw_values, read_values
from panoptic_detr.data.doctor.report import report_check

__all__ = ["find_splits", "raw_values", "read_values", "report_check", "show"]

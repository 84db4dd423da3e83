"""The HTML report of a data set's predictions."""

from panoptic_detr.visualization.report.build import write_report
from panoptic_detr.visualization.report.tables import read_curves

__all__ = ["read_curves", "write_report"]

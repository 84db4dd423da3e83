"""The HTML report of a data set's predictions."""

from panoptic_detr.visualization.report.page import read_curves, write_report

__all__ = ["read_curves", "write_report"]

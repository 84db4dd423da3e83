"""Drawing on pictures: overlays, labels, colours, text."""

from panoptic_detr.visualization.draw.labels import draw_boxes, outlines
from panoptic_detr.visualization.draw.layout import Curve, chart, legend_strip, side_by_side
from panoptic_detr.visualization.draw.overlay import class_name, enlarged, enlargement, index_of, label_text, overlay
from panoptic_detr.visualization.draw.palette import Palette, category_colors, segment_colors
from panoptic_detr.visualization.draw.segments import mask_strip, svg_overlay, zoom
from panoptic_detr.visualization.draw.text import default_font_size, draw_plate, first_font, line_width

__all__ = [
    "Curve",
    "Palette",
    "category_colors",
    "chart",
    "class_name",
    "default_font_size",
    "draw_boxes",
    "draw_plate",
    "enlarged",
    "enlargement",
    "first_font",
    "index_of",
    "label_text",
    "legend_strip",
    "line_width",
    "mask_strip",
    "outlines",
    "overlay",
    "segment_colors",
    "side_by_side",
    "svg_overlay",
    "zoom",
]

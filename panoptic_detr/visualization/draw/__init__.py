"""Drawing on pictures: overlays, labels, colours, text."""

from panoptic_detr.visualization.draw.boxes import draw_boxes
from panoptic_detr.visualization.draw.labels import outlines
from panoptic_detr.visualization.draw.layout import mask_strip, side_by_side, zoom
from panoptic_detr.visualization.draw.overlay import default_font_size, display_name, index_of, label_text, line_width, overlay
from panoptic_detr.visualization.draw.palette import Palette, category_colors, segment_colors
from panoptic_detr.visualization.draw.svg import svg_overlay
from panoptic_detr.visualization.draw.text import draw_plate, draw_text, free_row, plate_size, text_mask

__all__ = [
    "Palette",
    "category_colors",
    "default_font_size",
    "display_name",
    "draw_boxes",
    "draw_plate",
    "draw_text",
    "free_row",
    "index_of",
    "label_text",
    "line_width",
    "mask_strip",
    "outlines",
    "overlay",
    "plate_size",
    "segment_colors",
    "side_by_side",
    "svg_overlay",
    "text_mask",
    "zoom",
]

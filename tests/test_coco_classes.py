"""The classes of published COCO checkpoints."""

import pytest

from panoptic_detr.coco_classes import coco_categories


def test_panoptic_classes():
    table = coco_categories()
    assert (len(table.things), len(table.stuff), table.num_labels, table.labels) == (80, 53, 250, "id")
    assert [table.by_label[label].name for label in (1, 90, 92, 125, 200)] == [
        "person",
        "toothbrush",
        "banner",
        "gravel",
        "rug-merged",
    ]
    assert table.by_label[1].color == (220, 20, 60)
    assert 12 not in table.by_label  # COCO never used that id


def test_detection_classes():
    table = coco_categories(91)
    assert (len(table.things), len(table.stuff), table.num_labels) == (80, 0, 91)


def test_other_slots():
    with pytest.raises(ValueError, match="91 or 250 label slots, not 80"):
        coco_categories(80)

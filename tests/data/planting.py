"""Defects planted into the JSON of the tiny data set of conftest, and what the check must call them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.data.coco.defects import Defect
from panoptic_detr.data.doctor.examine import check_dataset, find_splits
from panoptic_detr.segment_maps import read_id_png

BALL, CUBE, CROWD, LAWN = 70_000, 300, 9, 1_000_000


def check(root: Path, **options: Any) -> list[Defect]:
    """Every defect but the notes about the tiny segments that the tiny data set is made of."""
    defects: list[Defect] = []
    check_dataset(find_splits(root), defects.append, workers=0, **options)
    return [defect for defect in defects if defect.kind != "segment_tiny"]


def ids_of(layout: Any) -> np.ndarray:
    return read_id_png(layout.png)


def repaint(layout: Any, old: int, new: int) -> None:
    ids = ids_of(layout)
    ids[ids == old] = new
    layout.save_map(ids)


def segment(layout: Any, segment_id: int) -> dict[str, Any]:
    return next(row for row in layout.segments if row["id"] == segment_id)


def second_image(layout: Any, image_id: int = 8) -> dict[str, Any]:
    """List a second image with files of its own; returns its annotation."""
    content = layout.content
    content["images"].append({**content["images"][0], "id": image_id, "file_name": f"{image_id}.jpg"})
    annotation = {**copy.deepcopy(content["annotations"][0]), "image_id": image_id, "file_name": f"{image_id}.png"}
    content["annotations"].append(annotation)
    layout.save_image(np.full((4, 6, 3), image_id, np.uint8), f"{image_id}.jpg")
    layout.png.with_name(f"{image_id}.png").write_bytes(layout.png.read_bytes())
    return annotation


# Each function plants one defect; None as segment: the defect is about the image or the file.


def plant_area(layout):
    segment(layout, CUBE)["area"] = 5


def plant_area_missing(layout):
    del segment(layout, CUBE)["area"]


def plant_area_infinite(layout):
    segment(layout, CUBE)["area"] = float("inf")


def plant_bbox(layout):
    segment(layout, CUBE)["bbox"] = [1, 1, 3, 2]


def plant_bbox_text(layout):
    segment(layout, CUBE)["bbox"] = "here"


def plant_json_only(layout):
    layout.segments.append({"id": 44, "category_id": 5, "iscrowd": 0, "area": 3, "bbox": [0, 0, 1, 3]})


def plant_png_only(layout):
    layout.segments.remove(segment(layout, CUBE))


def plant_segment_twice(layout):
    layout.segments.append({**segment(layout, CUBE), "category_id": 2})


def plant_segment_id(layout):
    segment(layout, CUBE)["id"] = "300"


def plant_segment_no_object(layout):
    layout.segments.append(17)


def plant_crowd(layout):
    segment(layout, CUBE)["iscrowd"] = 2


def plant_crowd_missing(layout):
    del segment(layout, CUBE)["iscrowd"]


def plant_category_unknown(layout):
    segment(layout, CUBE)["category_id"] = 77


def plant_category_list(layout):
    segment(layout, CUBE)["category_id"] = [5]


def plant_stuff_twice(layout):
    segment(layout, CUBE)["category_id"] = 9


def plant_category_twice(layout):
    layout.content["categories"].append({"id": 5, "name": "other", "isthing": 1})


def plant_category_name(layout):
    layout.content["categories"].append({"id": 6, "name": "cube", "isthing": 1})


def plant_no_isthing(layout):
    layout.content["categories"].append({"id": 6, "name": "wall"})


def plant_image_twice(layout):
    layout.content["images"].append({**layout.content["images"][0], "file_name": "other.jpg"})


def plant_image_file_twice(layout):
    second_image(layout)
    layout.content["images"][1]["file_name"] = "7.jpg"
    layout.jpg.with_name("8.jpg").unlink()


def plant_image_id(layout):
    layout.content["images"].append({"id": None, "file_name": "x.jpg"})


def plant_image_name(layout):
    del second_image(layout)["segments_info"][:]
    layout.content["annotations"][1]["segments_info"] = copy.deepcopy(layout.segments)
    layout.content["images"][1]["file_name"] = 5


def plant_annotation_twice(layout):
    layout.content["annotations"].append({**layout.content["annotations"][0], "file_name": "other.png"})


def plant_annotation_missing(layout):
    second_image(layout)
    del layout.content["annotations"][1]
    layout.png.with_name("8.png").unlink()


def plant_annotation_alone(layout):
    layout.content["annotations"].append({"image_id": 99, "file_name": "99.png", "segments_info": []})


def plant_annotation_list(layout):
    layout.content["annotations"][0]["segments_info"] = {"id": 3}


def plant_annotation_empty(layout):
    layout.segments.clear()
    layout.save_map(np.zeros((4, 6), np.int32))


def plant_png_shared(layout):
    second_image(layout)["file_name"] = "7.png"
    layout.png.with_name("8.png").unlink()


def plant_no_list(layout):
    layout.content["images"] = {}
    layout.content["annotations"] = []
    layout.png.unlink()
    layout.jpg.unlink()


def plant_no_things(layout):
    for category in layout.content["categories"]:
        category["isthing"] = 0


def plant_crowds_only(layout):
    segment(layout, CUBE)["iscrowd"] = 1


PLANTED_IN_JSON = [
    (plant_no_things, {"no_things"}, None),
    (plant_crowds_only, {"category_all_crowds"}, None),
    (plant_area, {"area_wrong"}, CUBE),
    (plant_area_missing, {"area_wrong"}, CUBE),
    (plant_area_infinite, {"area_wrong"}, CUBE),
    (plant_bbox, {"bbox_wrong"}, CUBE),
    (plant_bbox_text, {"bbox_wrong"}, CUBE),
    (plant_json_only, {"segment_only_in_json"}, 44),
    (plant_png_only, {"segment_only_in_png"}, CUBE),
    (plant_segment_twice, {"segment_duplicate"}, CUBE),
    (plant_segment_id, {"segment_invalid", "segment_only_in_png"}, "300"),
    (plant_segment_no_object, {"segment_invalid"}, None),
    (plant_crowd, {"segment_invalid"}, CUBE),
    (plant_crowd_missing, {"iscrowd_missing"}, None),
    (plant_category_unknown, {"category_unknown"}, CUBE),
    (plant_category_list, {"category_unknown"}, CUBE),
    (plant_stuff_twice, {"stuff_repeated"}, CUBE),
    (plant_category_twice, {"category_duplicate"}, None),
    (plant_category_name, {"category_name_repeated"}, None),
    (plant_no_isthing, {"category_invalid"}, None),
    (plant_image_twice, {"image_duplicate"}, None),
    (plant_image_file_twice, {"image_file_duplicate", "image_repeated"}, None),
    (plant_image_id, {"image_invalid"}, None),
    (plant_image_name, {"image_invalid", "file_unlisted"}, None),
    (plant_annotation_twice, {"annotation_duplicate"}, None),
    (plant_annotation_missing, {"annotation_missing"}, None),
    (plant_annotation_alone, {"annotation_without_image"}, None),
    (plant_annotation_list, {"annotation_invalid"}, None),
    (plant_annotation_empty, {"annotation_empty", "void_share"}, None),
    (plant_png_shared, {"png_shared"}, None),
    (plant_no_list, {"json_structure"}, None),
]

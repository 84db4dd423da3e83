"""What the tests of the predict job read of its output."""

import json

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import predict

TABLE = CategoryTable.from_coco([{"id": 3, "name": "cat", "isthing": 1}, {"id": 10, "name": "sky", "isthing": 0}])


def predictions(folder):
    content = json.loads((folder / "predictions.json").read_text())
    return content, {entry["image_id"]: entry for entry in content["annotations"]}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_share(rank, arguments, statuses):
    statuses[rank] = predict.main(arguments)

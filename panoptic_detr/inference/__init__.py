"""From a model's output to panoptic maps: choosing queries, merging masks, the predictor, the files it writes."""

from panoptic_detr.inference.batch import (
    Precision,
    choose_for,
    in_precision,
    merge_image,
    predict_batch,
    segment_batch,
    unpadded_parts,
)
from panoptic_detr.inference.choose import Choice
from panoptic_detr.inference.files import PictureFile, find_pictures, unique_name
from panoptic_detr.inference.merge import merge_panoptic
from panoptic_detr.inference.predictor import Predictor, load_model
from panoptic_detr.inference.stream import PredictionFolder, list_digest, prepare_folder

__all__ = [
    "Choice",
    "PictureFile",
    "Precision",
    "PredictionFolder",
    "Predictor",
    "choose_for",
    "find_pictures",
    "in_precision",
    "list_digest",
    "load_model",
    "merge_image",
    "merge_panoptic",
    "predict_batch",
    "prepare_folder",
    "segment_batch",
    "unique_name",
    "unpadded_parts",
]

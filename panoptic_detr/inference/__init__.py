"""From a model's output to panoptic maps: choosing queries, merging masks, the predictor, the files it writes."""

from panoptic_detr.inference.choose import choose_queries
from panoptic_detr.inference.files import PictureFile, PredictionFolder, find_pictures, prepare_folder
from panoptic_detr.inference.merge import merge_panoptic
from panoptic_detr.inference.predictor import (
    Predictor,
    chosen_queries,
    load_model,
    merge_image,
    predict_batch,
    segment_batch,
    unpadded_parts,
)

__all__ = [
    "PictureFile",
    "PredictionFolder",
    "Predictor",
    "choose_queries",
    "chosen_queries",
    "find_pictures",
    "load_model",
    "merge_image",
    "merge_panoptic",
    "predict_batch",
    "prepare_folder",
    "segment_batch",
    "unpadded_parts",
]

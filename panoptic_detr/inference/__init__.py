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
from panoptic_detr.inference.cluster import Recipe, ray_predict
from panoptic_detr.inference.files import (
    WRITTEN,
    PictureFile,
    check_apart,
    films_left_out,
    find_pictures,
    holds_films,
    is_film,
    list_digest,
    unique_name,
)
from panoptic_detr.inference.films import Film, check_drawn, films_identity, open_films, predict_film, predict_films
from panoptic_detr.inference.flow import Outcome, PictureModel, nothing_read, predict_files
from panoptic_detr.inference.merge import merge_panoptic
from panoptic_detr.inference.predictor import Predictor, load_model
from panoptic_detr.inference.rasters import Raster, check_tifffile, read_by_windows
from panoptic_detr.inference.shares import Share, join_processes, leave_processes
from panoptic_detr.inference.stream import FAILURES, Failure, PredictionFolder, prepare_folder
from panoptic_detr.inference.tiles import Tiled, spans, usual_overlap
from panoptic_detr.inference.tracking import Tracker

__all__ = [
    "FAILURES",
    "WRITTEN",
    "Choice",
    "Failure",
    "Film",
    "Outcome",
    "PictureFile",
    "PictureModel",
    "Precision",
    "PredictionFolder",
    "Predictor",
    "Raster",
    "Recipe",
    "Share",
    "Tiled",
    "Tracker",
    "check_apart",
    "check_drawn",
    "check_tifffile",
    "choose_for",
    "films_identity",
    "films_left_out",
    "find_pictures",
    "holds_films",
    "in_precision",
    "is_film",
    "join_processes",
    "leave_processes",
    "list_digest",
    "load_model",
    "merge_image",
    "merge_panoptic",
    "nothing_read",
    "open_films",
    "predict_batch",
    "predict_files",
    "predict_film",
    "predict_films",
    "prepare_folder",
    "ray_predict",
    "read_by_windows",
    "segment_batch",
    "spans",
    "unique_name",
    "unpadded_parts",
    "usual_overlap",
]

"""Scores of data sets and of files: PQ, box and mask AP, calibrated thresholds."""

from panoptic_detr.evaluation.calibrate import calibrate_thresholds
from panoptic_detr.evaluation.coco_ap import AveragePrecision
from panoptic_detr.evaluation.comparison import (
    Comparison,
    compare_predictions,
    comparison_table,
    draw_changes,
    write_comparison,
)
from panoptic_detr.evaluation.evaluate import ModelScores, check_same_categories, evaluate_model, evaluate_predictor
from panoptic_detr.evaluation.films import evaluate_films, film_scores, film_table
from panoptic_detr.evaluation.panoptic import evaluate_panoptic, score_image
from panoptic_detr.evaluation.panoptic_files import (
    AnnotationSet,
    Reader,
    folder_of,
    image_names,
    read_annotations,
    read_panoptic,
)
from panoptic_detr.evaluation.same_images import as_images_of, check_same_names, like_truth, match_names, results_of
from panoptic_detr.evaluation.tables import class_rows, show_scores, write_scores
from panoptic_detr.evaluation.thing_predictions import LayerPrecision, find_things

__all__ = [
    "AnnotationSet",
    "AveragePrecision",
    "Comparison",
    "LayerPrecision",
    "ModelScores",
    "Reader",
    "as_images_of",
    "calibrate_thresholds",
    "check_same_categories",
    "check_same_names",
    "class_rows",
    "compare_predictions",
    "comparison_table",
    "draw_changes",
    "evaluate_films",
    "evaluate_model",
    "evaluate_panoptic",
    "evaluate_predictor",
    "film_scores",
    "film_table",
    "find_things",
    "folder_of",
    "image_names",
    "like_truth",
    "match_names",
    "read_annotations",
    "read_panoptic",
    "results_of",
    "score_image",
    "show_scores",
    "write_comparison",
    "write_scores",
]

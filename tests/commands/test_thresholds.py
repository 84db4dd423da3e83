"""`--threshold` and `--stuff-threshold` mean the same to every job that takes them."""

import cv2
import numpy as np
import pytest

from panoptic_detr.commands import evaluate, predict
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.scenes.dataset import scene_categories, write_scenes
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.zoo import build_model


class Stopped(Exception):  # noqa: N818
    """Carries the settings that the work would have been done with."""


@pytest.mark.parametrize(
    ("options", "thresholds"),
    [
        ([], (0.5, 0.2)),
        (["--threshold", "0.7"], (0.7, 0.7)),
        (["--threshold", "0.7", "--stuff-threshold", "0.1"], (0.7, 0.1)),
        (["--stuff-threshold", "0.1"], (0.5, 0.1)),
    ],
)
def test_predict_and_evaluate_agree(options, thresholds, tmp_path, monkeypatch):
    def stop(*arguments, settings=None, **_):
        raise Stopped(settings or arguments[0].settings)

    monkeypatch.setattr(predict, "predict_all", stop)
    monkeypatch.setattr(evaluate, "evaluate_model", stop)
    tiny = {"backbone": "small", "hidden_dim": 16, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 2}
    table = scene_categories()
    model = build_model("detr_r50_panoptic", num_labels=table.num_labels, **tiny)
    settings = InferenceSettings(threshold=0.5, stuff_threshold=0.2)
    checkpoint = str(Predictor(model, table, settings=settings).save(tmp_path / "model.pt"))
    write_scenes(tmp_path / "scenes", 1, size=48, seed=1, split="val", workers=1)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    data = ["--data.root", str(tmp_path / "scenes"), "--data.split", "val"]
    for job, arguments in ((predict, [str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]), (evaluate, data)):
        with pytest.raises(Stopped) as stopped:
            job.main([checkpoint, *arguments, "--device", "cpu", *options])
        assert stopped.value.args[0].thresholds(no_object=True) == thresholds

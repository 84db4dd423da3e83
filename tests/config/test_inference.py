"""Inference settings: the paper's by default, refused by name if wrong, plain values in checkpoints."""

import pytest

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.reading import read_config
from panoptic_detr.config.stages import DetectorStage
from panoptic_detr.errors import ConfigError


def test_defaults_are_the_papers():
    assert InferenceSettings() == InferenceSettings(
        threshold=None,
        stuff_threshold=None,
        min_area=5,
        min_visible=0.0,
        duplicate_stuff="union",
        max_segments=None,
        short_side=800,
        long_side=1333,
    )


def test_without_a_setting_the_threshold_is_that_of_the_class_head():
    assert InferenceSettings().thresholds(no_object=True) == (0.85, 0.85)
    assert InferenceSettings().thresholds(no_object=False) == (0.4, 0.3)
    assert InferenceSettings(stuff_threshold=0.1).thresholds(no_object=False) == (0.4, 0.1)


@pytest.mark.parametrize("no_object", [True, False])
def test_a_threshold_that_is_set_counts_for_every_class_head(no_object):
    assert InferenceSettings(threshold=0.5).thresholds(no_object) == (0.5, 0.5)
    assert InferenceSettings(threshold=0.5, stuff_threshold=0.2).thresholds(no_object) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None,), (0.5, 0.2)),
        ((0.7,), (0.7, 0.7)),
        ((0.7, 0.1), (0.7, 0.1)),
        ((None, 0.1), (0.5, 0.1)),
        ((0.0, 0.0), (0.0, 0.0)),
    ],
)
def test_thresholds_given_anew(given, expected):
    settings = InferenceSettings(threshold=0.5, stuff_threshold=0.2, min_area=9)
    found = settings.with_thresholds(*given)
    assert found.thresholds(no_object=True) == expected
    assert found.min_area == 9
    assert settings.stuff_threshold == 0.2


def test_round_trip():
    settings = InferenceSettings(threshold=0.3, stuff_threshold=0.2, min_visible=0.5, short_side=None, max_segments=40)
    assert InferenceSettings.from_dict(settings.to_dict()) == settings
    assert InferenceSettings.from_dict(InferenceSettings().to_dict()).threshold is None


def test_the_section_of_a_training_run_is_the_same_class():
    assert type(DetectorStage().inference) is InferenceSettings
    arguments = ["--inference.threshold", "0.3", "--inference.short_side", "null", "--inference.duplicate_stuff", "keep_first"]
    expected = InferenceSettings(threshold=0.3, short_side=None, duplicate_stuff="keep_first")
    assert read_config(DetectorStage, arguments).inference == expected
    with pytest.raises(ConfigError, match=r"'inference\.threshold' must be in \[0, 1\], but got 2"):
        read_config(DetectorStage, ["--inference.threshold", "2"])
    with pytest.raises(ConfigError, match=r"'inference\.min_area' must be int, but got 'x'"):
        read_config(DetectorStage, ["--inference.min_area", "x"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"treshold": 0.5}, "unknown setting 'inference.treshold'; did you mean 'inference.threshold'"),
        ({"zzz": 0.5}, "unknown setting 'inference.zzz'; there are threshold, stuff_threshold"),
        ({"threshold": -1}, r"'inference\.threshold' must be in \[0, 1\], but got -1"),
        ({"stuff_threshold": 2}, r"'inference\.stuff_threshold' must be in \[0, 1\]"),
        ({"min_visible": 2}, r"'inference\.min_visible' must be in \[0, 1\]"),
        ({"duplicate_stuff": "all"}, "'inference.duplicate_stuff' must be one of union, keep_first, but got 'all'"),
        ({"max_segments": 0}, "'inference.max_segments' must be at least 1, but got 0"),
        ({"short_side": 0}, "'inference.short_side' must be at least 1, but got 0"),
    ],
)
def test_unusable_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        InferenceSettings.from_dict(values)

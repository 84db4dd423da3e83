import numpy as np
import pytest
import torch

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.transforms import train_transform
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import data as benchmark_data
from tools.benchmarks.measure import Stopwatch


@pytest.fixture
def pictures(tmp_path):
    benchmark_data.write_coco_sized(tmp_path, 2, seed=0)
    return CocoPanoptic.from_root(tmp_path, "val2017")


def test_both_pipelines_give_the_same_boxes(pictures):
    transform = train_transform(short_sides=(96, 128), crop_short_sides=(80,), crop_sides=(40, 80))
    for seed in range(6):
        boxes = [
            pipeline(pictures, seed % 2, transform, torch.Generator().manual_seed(seed), Stopwatch("cpu"))
            for pipeline in (benchmark_data.with_map, benchmark_data.with_stack)
        ]
        torch.testing.assert_close(*boxes)
        assert len(boxes[0]) > 0


def test_made_pictures_are_cocos_size_with_many_segments(pictures):
    samples = [pictures[i] for i in range(2)]
    assert all(sample.image.shape == (3, 480, 640) for sample in samples)
    assert np.mean([len(sample.target) for sample in samples]) > 5


def test_result_adds_up_and_prints(capsys, monkeypatch):
    # Small pictures: what is tested is the bookkeeping, not the speed.
    monkeypatch.setattr(benchmark_data, "train_transform", lambda: train_transform(short_sides=(64,), crop_probability=0))
    assert benchmark.main(["data", "--images", "2", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "images per second and core" in printed
    result = benchmark_data.run(images=2, repeats=1)
    assert result["images"] == 2
    for name, rate in result["images_per_second"].items():
        assert rate == pytest.approx(1000 / sum(result["milliseconds"][name].values()))
    assert result["ratio"] == pytest.approx(result["images_per_second"]["map"] / result["images_per_second"]["stack"])
    assert all(part in printed for part in benchmark_data.PARTS)

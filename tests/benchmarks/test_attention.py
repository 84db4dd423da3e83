"""The comparison of sampling ways: the baseline is right, and the command runs."""

import torch

from panoptic_detr.models.deformable.attention import sample_with_grid
from tools.benchmarks import __main__ as benchmark
from tools.benchmarks import attention as benchmark_attention


def test_naive_baseline_is_the_same_operation():
    shapes = benchmark_attention.pyramid(33, 64, (8, 16))
    assert shapes == [(5, 8), (3, 4)]
    value = torch.randn(2, 52, 2, 3)
    locations, weights = torch.rand(2, 7, 2, 2, 3, 2) * 1.4 - 0.2, torch.rand(2, 7, 2, 2, 3)
    expected = sample_with_grid(value, shapes, locations, weights)
    torch.testing.assert_close(benchmark_attention.sample_naively(value, shapes, locations, weights), expected)


def test_command_prints_every_way(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_attention._milliseconds, "__defaults__", (0.0,))
    options = ["--image", "[64, 64]", "--queries", "5", "--heads", "2", "--head_width", "4", "--points", "2", "--device", "cpu"]
    assert benchmark.main(["attention", *options]) == 0
    printed = capsys.readouterr().out
    assert all(way in printed for way in ("naive gather", "grid_sample", "table"))

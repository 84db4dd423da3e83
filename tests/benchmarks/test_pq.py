"""The PQ benchmark measures what it says, on few pairs; its baseline is right, and it would notice a disagreement."""

import importlib
import json
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from panoptic_detr.evaluation import evaluate_panoptic, read_annotations
from tools.benchmarks import pq as benchmark_pq

PQ_DATA = Path(__file__).parents[1] / "parity" / "data" / "pq"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return benchmark_pq.write_pairs(tmp_path_factory.mktemp("pairs"), 2, 0)


def test_all_figures_are_there(capsys):
    result = benchmark_pq.run(pairs=2, images=6, flat_over=20)
    assert json.loads(json.dumps(result))["pairs"] == 2
    ways = {f"PNG, {name}" for name in benchmark_pq.ways()}
    assert "PNG, as maps (OpenCV)" in ways
    assert result["milliseconds"].keys() >= {*ways, "memory", "memory, with boundary PQ", "straightforward, PNG"}
    assert all(value > 0 for value in result["milliseconds"].values())
    assert set(result["seconds"]) >= {1, 2}
    assert min(*result["seconds"].values(), *result["cpu"].values(), result["intervals"]) > 0
    Console().print(*benchmark_pq.tables(result))
    assert "seconds of 2,000 draws for intervals" in capsys.readouterr().out


def test_the_whole_set_is_that_of_the_pairs(pairs):
    truth, prediction = pairs
    places = (truth.path, truth.folder, prediction.path, prediction.folder)
    whole = evaluate_panoptic(*benchmark_pq.repeat_pairs(*pairs, 4))
    assert whole.images == 4
    assert whole.all == evaluate_panoptic(*places).all


def test_categories_of_pixels(pairs):
    regions = pairs[0].regions(0)
    found = benchmark_pq.as_categories(regions)
    for segment_id, category_id in zip(regions.ids, regions.category_ids, strict=True):
        assert (found[regions.segment_map == segment_id] == (category_id, segment_id)).all()
    assert set(found[regions.segment_map == 0][:, 0]) == {99}


def test_pairs_are_what_the_benchmark_says(pairs):
    truth, prediction = pairs
    for image_id in truth.entries:
        expected, found = truth.regions(image_id), prediction.regions(image_id)
        assert expected.segment_map.shape == found.segment_map.shape == (480, 640)
        assert 8 <= len(expected) <= 12
        assert expected.ids.max() > 2**16
    assert truth.regions(0).iscrowd.sum() == 1


@pytest.mark.parametrize("case", ["mixed", "coco_sample_perturbed"])
def test_the_baseline_is_right(case):
    folder = PQ_DATA / case
    truth, prediction = (read_annotations(folder / f"{side}.json", folder / side) for side in ("gt", "pred"))
    baseline = benchmark_pq.Baseline()
    for image_id, entry in truth.entries.items():
        other = prediction.entries[image_id]
        maps = [benchmark_pq.read_plainly(s.folder / e["file_name"]) for s, e in ((truth, entry), (prediction, other))]
        baseline.add(*maps, entry["segments_info"], other["segments_info"])
    assert baseline.pq() == pytest.approx(json.loads((folder / "expected.json").read_text())["All"]["pq"], abs=1e-12)


def test_a_disagreement_is_not_timed_away(pairs, monkeypatch):
    monkeypatch.setattr(benchmark_pq.Baseline, "pq", lambda self: 0.1)
    with pytest.raises(RuntimeError, match="PQ by the ways of reading, from memory and of the baseline differ"):
        benchmark_pq.time_pairs(*pairs)


def test_panopticapi_is_timed_where_it_is(pairs, monkeypatch):
    calls = []
    module = types.ModuleType("panopticapi.evaluation")
    module.pq_compute_single_core = lambda *arguments: calls.append(arguments)
    package = types.ModuleType("panopticapi")
    package.__spec__ = importlib.machinery.ModuleSpec("panopticapi", None)
    monkeypatch.setitem(sys.modules, "panopticapi", package)
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", module)
    assert benchmark_pq.time_panopticapi(*pairs).keys() == {"panopticapi, PNG"}
    ((core, matched, gt_folder, pred_folder, categories),) = calls
    assert (core, len(matched), gt_folder, pred_folder) == (0, 2, str(pairs[0].folder), str(pairs[1].folder))
    assert matched[0][0]["image_id"] == matched[0][1]["image_id"]
    assert categories[9]["isthing"] == 0

"""PQ equals panopticapi's on its recorded results, and a pixel-by-pixel reading of the definition on random maps."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_detr import segment_maps
from panoptic_detr.categories import CategoryTable
from panoptic_detr.evaluation import panoptic
from panoptic_detr.evaluation.panoptic import evaluate_panoptic
from panoptic_detr.quality.overlaps import Regions
from panoptic_detr.quality.panoptic_quality import PanopticQuality

DATA = Path(__file__).parent / "data" / "pq"
TABLE = CategoryTable.from_coco([{"id": i, "name": f"c{i}", "isthing": int(i < 3)} for i in (1, 2, 7, 9)])


@pytest.mark.parametrize(("workers", "decoder"), [(1, "fast"), (3, "fast"), (1, "OpenCV"), (2, "runs")])
@pytest.mark.parametrize("case", ["mixed", "coco_sample_perturbed"])
def test_recorded_results_of_panopticapi(case, workers, decoder, monkeypatch):
    if decoder == "OpenCV":
        monkeypatch.setattr(segment_maps, "fast_decoder", None)
    if decoder == "runs":
        pytest.importorskip("numba")
        monkeypatch.setattr(panoptic, "MANY", 0)
    folder = DATA / case
    result = evaluate_panoptic(folder / "gt.json", folder / "gt", folder / "pred.json", folder / "pred", workers=workers)
    expected, got = json.loads((folder / "expected.json").read_text()), result.as_dict()
    assert got.keys() == expected.keys()
    for group in ("All", "Things", "Stuff"):
        assert got[group] == pytest.approx(expected[group], abs=1e-12, rel=0)
    assert {str(i) for i in got["per_class"]} == set(expected["per_class"])
    for category_id, scores in expected["per_class"].items():
        assert got["per_class"][category_id] == pytest.approx(scores, abs=1e-12, rel=0)
        assert got["per_class"][int(category_id)] == got["per_class"][category_id]
    assert result.notes == ()
    assert result.all.pq > 0.2


def counts_by_the_definition(truth, true_segments, prediction, predicted_segments):
    """(tp, fp, fn, iou) of each category, one segment and one mask after the other, as panopticapi counts them."""
    counts = {category: [0, 0, 0, 0.0] for category in TABLE.by_id}
    void = (truth == 0) & (0 not in {i for i, _, _ in true_segments})
    matched_truth, matched_prediction = set(), set()
    for i, category, crowd in true_segments:
        for j, predicted_category, _ in predicted_segments:
            if crowd or category != predicted_category:
                continue
            mask, other = truth == i, (prediction == j) & ~void
            iou = (mask & other).sum() / (mask | other).sum()
            if iou > 0.5:
                counts[category][0] += 1
                counts[category][3] += iou
                matched_truth.add(i)
                matched_prediction.add(j)
    crowds = {}
    for i, category, crowd in true_segments:
        if crowd:
            crowds[category] = i
        elif i not in matched_truth:
            counts[category][2] += 1
    for j, category, _ in predicted_segments:
        mask = prediction == j
        ignored = (
            (mask & void).sum() + (mask & (truth == crowds[category])).sum() if category in crowds else (mask & void).sum()
        )
        if j not in matched_prediction and not ignored / mask.sum() > 0.5:
            counts[category][1] += 1
    return counts


@st.composite
def maps(draw, crowds):
    """A small map of a few ids, among them void, with the rows of its segments."""
    ids = draw(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=4, unique=True))
    cells = draw(st.lists(st.sampled_from([0, *ids]), min_size=24, max_size=24))
    segment_map = np.array(cells, dtype=np.int32).reshape(4, 6)
    present = [i for i in ids if i in cells]
    categories = draw(st.lists(st.sampled_from(sorted(TABLE.by_id)), min_size=4, max_size=4))
    iscrowd = draw(st.lists(st.booleans(), min_size=4, max_size=4))
    count = len(present)  # of the four drawn
    rows = [(i, c, crowds and k) for i, c, k in zip(present, categories[:count], iscrowd[:count], strict=True)]
    return segment_map, rows


@settings(max_examples=100, deadline=None, derandomize=True)
@given(maps(crowds=True), maps(crowds=False))
def test_random_maps_agree_with_the_definition(truth, prediction):
    quality = PanopticQuality(TABLE)
    quality.update_regions(Regions.from_rows(*prediction, "prediction"), Regions.from_rows(*truth, "truth"))
    result = quality.compute()
    for category, (tp, fp, fn, iou) in counts_by_the_definition(*truth, *prediction).items():
        got = result.per_class[category]
        assert (got.tp, got.fp, got.fn) == (tp, fp, fn)
        assert got.sq == pytest.approx(iou / tp if tp else 0.0, abs=1e-12)
        assert sum(result.lost.get(category, ())) == fn
        assert sum(result.extra.get(category, ())) == fp
    assert all(0.0 <= value <= 1.0 for group in (result.all, result.things, result.stuff) for value in group[:3])

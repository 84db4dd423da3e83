"""The merger against the published merger's maps and segments (its ids start from 0, ours from 1)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from panoptic_detr.inference.merge import merge_panoptic
from panoptic_detr.segment_maps import resize_ids

DATA = Path(__file__).parent / "data" / "merge"
CASES = sorted(file.stem for file in DATA.glob("*.npz"))
CATEGORIES = [{"id": i, "name": str(i), "isthing": int(i <= 90)} for i in range(1, 201)]


def merged(case, **options):
    arrays = np.load(DATA / f"{case}.npz")
    result = merge_panoptic(
        torch.from_numpy(arrays["logits"]),
        torch.from_numpy(arrays["masks"]),
        categories=CATEGORIES,
        size=arrays["processed_size"],
        target_size=arrays["target_size"],
        **options,
    )
    return arrays, result


def test_all_cases_are_here():
    assert CASES == ["duplicate_stuff", "nothing_kept", "things", "things_and_stuff", "tiny_segment"]


@pytest.mark.parametrize("case", CASES)
def test_keep_first_equals_the_published_merger(case):
    arrays, result = merged(case, duplicate_stuff="keep_first")
    expected = json.loads((DATA / f"{case}.json").read_text())
    ours = [{"id": s.id - 1, "isthing": s.isthing, "category_id": s.category_id, "area": s.area} for s in result.segments]
    assert ours == expected
    first_id = 1 if expected else 0
    assert np.array_equal(result.segment_map, arrays["segment_map"] + first_id)


@pytest.mark.parametrize("case", [case for case in CASES if case != "duplicate_stuff"])
def test_union_changes_nothing_without_duplicates(case):
    assert np.array_equal(merged(case)[1].segment_map, merged(case, duplicate_stuff="keep_first")[1].segment_map)


def test_union_covers_what_the_first_argmax_gave_its_masks():
    arrays, result = merged("duplicate_stuff")
    logits, masks = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["masks"])
    scores, labels = logits.softmax(-1).max(-1)
    kept = (labels < 250) & (scores > 0.85)
    large = F.interpolate(masks[kept][None], size=tuple(arrays["processed_size"]), mode="bilinear")[0]
    winner = labels[kept][large.argmax(0)]
    expected = resize_ids((winner == 92).numpy(), tuple(arrays["target_size"]))
    segment = next(s for s in result.segments if s.category_id == 92)
    assert np.array_equal(result.segment_map == segment.id, expected)
    assert segment.area == expected.sum()
    assert [(d.query, d.reason, d.into) for d in result.dropped if d.into] == [(3, "merged", 2), (15, "merged", 2)]


def test_nothing_kept_is_all_void():
    _, result = merged("nothing_kept")
    assert result.segments == []
    assert result.segment_map.shape == (150, 200)
    assert not result.segment_map.any()
    assert {d.reason for d in result.dropped} == {"no object", "low score"}

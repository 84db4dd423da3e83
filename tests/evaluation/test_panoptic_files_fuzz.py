"""Scoring folders: no input, however damaged, leads to an internal error."""

import copy
import json
from collections import Counter

import pytest
from evaluation.conftest import DECODERS, reading
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_detr.errors import EvaluationError


def score_or_clear_error(files, decoders=DECODERS):
    """Either scores that fit together (True), or an EvaluationError of one readable line; the same with every decoder."""
    outcomes = []
    for decoder in decoders:
        with reading(decoder):
            try:
                outcomes.append(files.evaluate_as_is())
            except EvaluationError as error:
                outcomes.append(str(error))
    first = outcomes[0]
    assert outcomes == [first] * len(decoders)
    if isinstance(first, str):
        assert 10 < len(first) < 1000
    else:
        check_scores(first)
    return not isinstance(first, str)


def check_scores(result):
    groups = [result.all, result.things, result.stuff, *result.per_class.values()]
    assert all(0.0 <= value <= 1.0 for group in groups for value in group[:3])
    for quality in result.per_class.values():
        assert quality.rq == pytest.approx(quality.tp / max(quality.tp + (quality.fp + quality.fn) / 2, 1))
        assert quality.pq == pytest.approx(quality.sq * quality.rq)
        assert quality.sq > 0.5 or not quality.tp  # a match overlaps by more than a half


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([1, 2, 5, 300, 70000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """Every place inside a JSON value, as (container path, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


fuzz = settings(max_examples=80, deadline=None, derandomize=True)


def test_fuzzed_json(plain_files):
    files = plain_files
    files.evaluate()
    outcomes = Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        name = data.draw(st.sampled_from(["gt", "pred"]))
        for side in ("gt", "pred"):
            content = getattr(files, side)
            (files.root / f"{side}.json").write_text(json.dumps(changed(content, data) if side == name else content))
        outcomes[score_or_clear_error(files, [data.draw(st.sampled_from(DECODERS))])] += 1

    change()
    assert min(outcomes[True], outcomes[False]) >= 10  # a reader that refuses, or takes, everything is none


def changed(content, data):
    """A JSON value with one to three of its values replaced, removed or doubled."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(sorted(places(content), key=repr)))
        holder = content
        for step in path:
            holder = holder[step]
        action = data.draw(st.sampled_from(["set", "delete", "double"]))
        if action == "set":
            holder[key] = data.draw(junk)
        elif action == "delete":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        if not list(places(content)):
            break
    return content


def test_fuzzed_bytes(plain_files):
    files = plain_files
    files.evaluate()
    outcomes = Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        path = files.root / data.draw(st.sampled_from(["gt.json", "pred.json", "gt/1.png", "pred/2.png"]))
        original = path.read_bytes()
        content = bytearray(original)
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        length = data.draw(st.integers(0, len(content)) | st.just(len(content)))
        path.write_bytes(bytes(content[:length]))
        try:
            done = score_or_clear_error(files)
        finally:
            path.write_bytes(original)
        assert done or bytes(content[:length]) != original
        assert not (done and path.suffix == ".json" and length < len(original) // 2)
        outcomes[done] += 1

    change()
    assert outcomes[True] >= 1
    assert outcomes[False] >= 10

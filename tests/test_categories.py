import pytest

from panoptic_detr.categories import CategoryTable, default_color
from panoptic_detr.errors import CategoryError

ROWS = [
    {"id": 7, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 2, "name": "猫", "isthing": 1},
]


def test_rows_are_sorted_and_gaps_are_allowed():
    table = CategoryTable.from_coco(ROWS)
    assert [c.id for c in table.categories] == [2, 7]
    assert table.label_of == {2: 0, 7: 1}
    assert table.num_labels == 2
    assert [c.name for c in table.things] == ["猫"]
    assert [c.name for c in table.stuff] == ["sky"]
    assert table.by_id[7].color == (1, 2, 3)
    assert table.by_id[2].color == default_color(2)


def test_published_tables_have_label_equal_id():
    table = CategoryTable.from_coco(ROWS, labels="id", num_labels=250)
    assert table.label_of == {2: 2, 7: 7}
    assert table.by_label.keys() == {2, 7}


@pytest.mark.parametrize(("slots", "label"), [(None, 1), (2, 1), (91, 7)])
def test_a_list_takes_the_rule_that_fits_the_head(slots, label):
    assert CategoryTable.of(ROWS, num_labels=slots).label_of[7] == label


def test_files_and_dicts_round_trip(tmp_path):
    table = CategoryTable.from_coco(ROWS, labels="id", num_labels=91)
    table.save(tmp_path / "categories.json")
    assert CategoryTable.load(tmp_path / "categories.json") == table
    assert CategoryTable.from_dict(table.to_dict()) == table
    assert CategoryTable.of(table) is table
    for text in ("no JSON", "[]", "{}", '{"categories": 1, "labels": "id", "num_labels": 1}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(
            CategoryError, match=r"not a class table|a class table is an object with|must be a CategoryTable or"
        ):
            CategoryTable.load(tmp_path / "other.json")


@pytest.mark.parametrize("wrong", [{"num_labels": "5"}, {"labels": "other"}])
def test_slots_and_convention_are_checked(wrong):
    with pytest.raises(CategoryError, match="num_labels must be a whole number and labels one of contiguous, id"):
        CategoryTable.from_coco([{"id": 1, "name": "a", "isthing": 1}], **wrong)


def test_differences_are_named():
    table = CategoryTable.from_coco(ROWS)
    other = CategoryTable.from_coco([{**ROWS[0], "name": "ski"}, ROWS[1]], num_labels=3)
    assert table.differences(table) == []
    assert table.differences(other) == [
        "label 1: 'sky' (stuff) here, 'ski' (stuff) there",
        "2 label slots here, 3 there",
    ]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no categories"),
        ([{"id": 1, "name": "a"}], {}, "has no isthing"),
        ([{"isthing": 1}], {}, "no id and no name"),
        ([{"id": "1", "name": "a", "isthing": 1}], {}, "'1' is a text, not an integer"),
        ([{"id": 1, "name": "a", "isthing": 2}], {}, "isthing=2; expected 0 or 1"),
        ([ROWS[0], ROWS[0]], {}, "id 7 is used more than once"),
        (ROWS, {"num_labels": 1}, "1 label slots are too few"),
        (ROWS, {"labels": "id", "num_labels": 7}, r"highest id 7\) needs 8"),
        ([{"id": -1, "name": "a", "isthing": 1}], {"labels": "id"}, "negative"),
    ],
)
def test_bad_lists_are_refused_with_the_reason(rows, options, message):
    with pytest.raises(CategoryError, match=message):
        CategoryTable.from_coco(rows, **options)


def test_colours_differ_and_are_stable():
    colors = [default_color(i) for i in range(200)]
    assert len(set(colors)) > 190
    assert default_color(5) == colors[5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "list: category 3 has name None, but a name is a text"),
        ({"id": 10**18}, "list: category id 1000000000000000000 does not fit into 32 bits"),
    ],
)
def test_names_that_are_none_and_ids_that_fit_nowhere_are_refused(change, message):
    with pytest.raises(CategoryError, match=message):
        CategoryTable.from_coco([{"id": 3, "name": "cat", "isthing": 1, **change}], where="list")

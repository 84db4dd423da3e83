"""Results of transformers, its pipelines and detectron2 become ours, are scored, drawn and written, and go back."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import cli
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import InputError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.segment_maps import read_id_png
from panoptic_detr.visualization.draw import overlay
from panoptic_detr.visualization.errors import ErrorKind, compare

ROWS = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 40, "name": "grass", "isthing": 0},
    {"id": 41, "name": "sky", "isthing": 0},
]
TABLE = CategoryTable.from_coco(ROWS)
CAT, DOG, GRASS, SKY = range(4)  # labels


def spread(rows):
    """A map with 4 x 4 pixels for each number."""
    return np.kron(np.array(rows), np.ones((4, 4), int))


def info(number, label, **more):
    return {"id": number, "label_id": label, "was_fused": False, "score": 0.9, **more}


def classes(segmentation):
    """The map of category ids, -1 for void: what a result says of each pixel, however its segments are numbered."""
    table = {segment.id: segment.category_id for segment in segmentation.segments}
    return np.vectorize(lambda value: table.get(value, -1))(segmentation.segment_map)


@pytest.mark.parametrize(("void", "first"), [(-1, 0), (-1, 1), (0, 1)], ids=str)
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda ids: torch.tensor(ids, dtype=torch.float32)])
def test_ids_from_0_or_1_and_either_void(void, first, kind):
    ids = spread([[first, first, void], [first + 1, first + 1, first + 2]])
    rows = [info(first, CAT), info(first + 1, GRASS), info(first + 2, CAT, score=0.5)]
    result = PanopticSegmentation.from_transformers({"segmentation": kind(ids), "segments_info": rows}, TABLE, image_id=5)
    assert result.segment_map.dtype == np.int32
    assert (classes(result) == spread([[3, 3, -1], [40, 40, 3]])).all()
    assert [(s.id, s.isthing, s.score, s.area, s.box) for s in result.segments] == [
        (1, True, 0.9, 32, (0, 0, 8, 4)),
        (2, False, 0.9, 32, (0, 4, 8, 4)),
        (3, True, 0.5, 16, (8, 4, 4, 4)),
    ]
    assert result.image_id == 5


def test_stuff_is_joined_and_things_are_not():
    rows = [info(1, GRASS, score=0.4), info(2, GRASS, score=0.8), info(3, CAT), info(4, CAT)]
    result = {"segmentation": spread([[1, 2], [3, 4]]), "segments_info": rows}
    joined = PanopticSegmentation.from_transformers(result, TABLE)
    assert [(s.category_id, s.area, s.score) for s in joined.segments] == [(40, 32, 0.8), (3, 16, 0.9), (3, 16, 0.9)]
    apart = PanopticSegmentation.from_transformers(result, TABLE, fuse_stuff=False)
    assert [s.category_id for s in apart.segments] == [40, 40, 3, 3]


def test_an_id_may_be_listed_again_and_a_segment_may_have_no_pixel():
    rows = [info(1, GRASS, was_fused=True, score=0.4), info(1, GRASS, was_fused=True), info(2, CAT), info(3, DOG)]
    result = PanopticSegmentation.from_transformers({"segmentation": spread([[1, 2]]), "segments_info": rows}, TABLE)
    assert [(s.category_id, s.score) for s in result.segments] == [(40, 0.9), (3, 0.9)]


def test_nothing_found_is_an_empty_map():
    result = PanopticSegmentation.from_transformers({"segmentation": torch.zeros(8, 9) - 1, "segments_info": []}, TABLE)
    assert (result.segment_map.shape, result.segments) == ((8, 9), [])


def test_classes_are_found_by_name_or_by_the_tables_own_labels():
    result = {"segmentation": spread([[1]]), "segments_info": [info(1, 17)]}
    by_name = PanopticSegmentation.from_transformers(result, ROWS, id2label={"17": "sky", 4: "cat"})
    assert by_name.segments[0].category_id == 41
    published = CategoryTable.from_coco(ROWS, labels="id", num_labels=250)
    result["segments_info"] = [info(1, 40)]
    assert PanopticSegmentation.from_transformers(result, published).segments[0].category_id == 40


def test_a_pipelines_list_of_masks():
    ids = spread([[1, 2], [2, 0]])
    rows = [{"label": "dog", "score": 0.7, "mask": (ids == 1).astype(np.uint8) * 255}, {"label": "sky", "mask": ids == 2}]
    result = PanopticSegmentation.from_transformers(rows, TABLE)
    assert (classes(result) == spread([[7, 41], [41, -1]])).all()
    assert [s.score for s in result.segments] == [0.7, 1.0]


METADATA = SimpleNamespace(
    thing_dataset_id_to_contiguous_id={3: 0, 7: 1}, stuff_dataset_id_to_contiguous_id={40: 1, 41: 2}, label_divisor=1000
)


def test_detectron2_counts_things_and_stuff_apart():
    rows = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.8, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 1, "area": 16},
    ]
    pair = (torch.tensor(spread([[1, 0], [2, 2]])), rows)
    for given in (pair, {"panoptic_seg": pair, "sem_seg": None}):
        result = PanopticSegmentation.from_detectron2(given, TABLE, metadata=METADATA)
        assert (classes(result) == spread([[7, -1], [40, 40]])).all()
        assert [(s.isthing, s.score) for s in result.segments] == [(True, 0.8), (False, 1.0)]


def test_detectron2_without_metadata_counts_all_classes_together():
    rows = [{"id": 1, "isthing": True, "category_id": DOG}, {"id": 2, "isthing": False, "category_id": SKY}]
    result = PanopticSegmentation.from_detectron2((spread([[1, 2]]), rows), TABLE)
    assert [s.category_id for s in result.segments] == [7, 41]
    rows[1]["category_id"] = CAT
    with pytest.raises(InputError, match=r"category 0 is stuff in the result but 'cat' is a thing in the table"):
        PanopticSegmentation.from_detectron2((spread([[1, 2]]), rows), TABLE)


def test_detectron2_maps_of_class_and_instance():
    ids = spread([[1003, 2000, -1]])
    metadata = SimpleNamespace(
        thing_dataset_id_to_contiguous_id={7: 1}, stuff_dataset_id_to_contiguous_id={41: 2}, label_divisor=1000
    )
    result = PanopticSegmentation.from_detectron2((torch.tensor(ids), None), TABLE, metadata=metadata)
    assert (classes(result) == spread([[7, 41, -1]])).all()
    with pytest.raises(InputError, match="give metadata with label_divisor"):
        PanopticSegmentation.from_detectron2((torch.tensor(ids), None), TABLE)


ONE, TWO = spread([[1]]), spread([[1, 2]])
BAD = {
    "no such thing": ([1, 2], "a result of transformers is what post_process_panoptic_segmentation gives .* a list"),
    "semantic": ({"logits": 1}, "but this is a dict with 'logits'"),
    "none": ({"segmentation": None, "segments_info": []}, "ask post_process_panoptic_segmentation for target_sizes"),
    "label": ({"segmentation": ONE, "segments_info": [info(1, 9)]}, "label 9 is none of the table's labels"),
    "unlisted": ({"segmentation": TWO, "segments_info": [info(1, CAT)]}, "segment id 2, which is not listed"),
    "twice": ({"segmentation": ONE, "segments_info": [info(1, CAT), info(1, SKY)]}, "id 1 is listed for 'cat' and for 'sky'"),
    "keys": ({"segmentation": ONE, "segments_info": [{"id": 1}]}, "segment without 'label_id'"),
    "axes": ({"segmentation": np.zeros((1, 4, 4)), "segments_info": []}, r"must be \(H, W\) of integers, but got"),
    "fractions": ({"segmentation": np.full((4, 4), 0.5), "segments_info": []}, "this one has fractions"),
    "pipeline": ([{"label": "cow", "mask": ONE}], "there is no category named 'cow'; the table has 'cat', 'dog'"),
    "empty pipeline": ([], "the pipeline found nothing"),
    "two sizes": (
        [{"label": "cat", "mask": ONE}, {"label": "dog", "mask": np.ones((2, 3))}],
        r"the masks of one image must be \(H, W\) of one size, but theirs are",
    ),
    "three axes": ([{"label": "cat", "mask": np.ones((2, 3, 1))}], r"must be \(H, W\) of one size, but theirs are \(2, 3, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_results_are_named(case):
    given, message = BAD[case]
    with pytest.raises(InputError, match=message):
        PanopticSegmentation.from_transformers(given, TABLE)


@pytest.mark.parametrize("given", [{"instances": 1}, [1], None, (ONE, [{"category_id": 0}])], ids=str)
def test_bad_results_of_detectron2_are_named(given):
    with pytest.raises(InputError, match=r"the pair \(map, segments_info\)|segment without 'id'"):
        PanopticSegmentation.from_detectron2(given, TABLE)


def scene():
    """Two cats, grass, void."""
    segment_map = spread([[1, 2], [7, 0]]).astype(np.int32)
    segments = [
        Segment(1, 3, True, 0.75, 16, (0, 0, 4, 4), query=4),
        Segment(2, 3, True, 0.5, 16, (4, 0, 4, 4), query=1),
        Segment(7, 40, False, 1.0, 16, (0, 4, 4, 4)),
    ]
    return PanopticSegmentation(segment_map, segments, TABLE)


def test_there_and_back_changes_nothing_but_numbers():
    result = scene().to_transformers()
    assert result["segmentation"].dtype == torch.int32
    assert result["segmentation"][7, 7] == -1
    assert result["segments_info"][0] == {"id": 1, "label_id": CAT, "was_fused": False, "score": 0.75}
    assert result["segments_info"][2] == {"id": 7, "label_id": GRASS, "was_fused": True, "score": 1.0}
    back = PanopticSegmentation.from_transformers(result, TABLE)
    assert (classes(back) == classes(scene())).all()
    expected = [(s.category_id, s.score, s.area, s.box) for s in scene().segments]
    assert [(s.category_id, s.score, s.area, s.box) for s in back.segments] == expected


def test_a_foreign_result_is_scored_drawn_and_written_like_our_own(tmp_path):
    foreign = PanopticSegmentation.from_transformers(scene().to_transformers(), TABLE)
    quality = PanopticQuality(TABLE)
    quality.update(foreign, scene())
    assert quality.compute().all.pq == 1.0
    assert set(np.unique(compare(foreign, scene()).kinds)) == {ErrorKind.IGNORED, ErrorKind.CORRECT}
    assert overlay(np.zeros((8, 8, 3), np.uint8), foreign, scale=4).shape == (32, 32, 3)
    foreign.save(tmp_path / "a.png")
    assert (read_id_png(tmp_path / "a.png") == foreign.segment_map).all()
    assert [row["category_id"] for row in foreign.to_coco(1)["segments_info"]] == [3, 3, 40]


@pytest.mark.parametrize("fuse", [set(), {GRASS, SKY}], ids=["apart", "fused"])
def test_what_transformers_makes_of_logits_and_masks_is_read(fuse):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    logits = torch.full((1, 3, 5), -9.0)
    for query, label in enumerate((CAT, GRASS, GRASS)):
        logits[0, query, label] = 9.0
    masks = torch.full((1, 3, 8, 8), -9.0)
    masks[0, 0, :4], masks[0, 1, 4:, :4], masks[0, 2, 4:, 4:] = 9, 9, 9
    given = SimpleNamespace(logits=logits, pred_masks=masks)
    (result,) = transformers.DetrImageProcessor().post_process_panoptic_segmentation(
        given, label_ids_to_fuse=fuse, target_sizes=[(8, 8)]
    )
    read = PanopticSegmentation.from_transformers(result, TABLE)
    assert [(s.category_id, s.area) for s in read.segments] == [(3, 32), (40, 32)]
    assert (classes(read) == spread([[3, 3], [40, 40]])).all()


def test_supervision_gets_masks_boxes_ids_and_names():
    supervision = pytest.importorskip("supervision", reason="needs supervision: pip install supervision")
    detections = scene().to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.class_id.tolist() == [3, 3, 40]
    assert detections["class_name"].tolist() == ["cat", "cat", "grass"]
    assert detections.xyxy.tolist() == [[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8]]
    assert detections.confidence.tolist() == [0.75, 0.5, 1.0]
    assert detections.area.tolist() == [16, 16, 16]
    assert len(detections[detections["isthing"]]) == 2
    drawn = supervision.MaskAnnotator().annotate(np.zeros((8, 8, 3), np.uint8), detections)
    assert drawn[:4].any()
    assert len(PanopticSegmentation(np.zeros((8, 8), np.int32), [], TABLE).to_supervision()) == 0


def tiny_mask2former(names):
    """An untrained Mask2Former of a few thousand weights, and its processor."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages
    )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
    }
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5}
    config = transformers.Mask2FormerConfig(backbone_config=backbone, id2label=dict(enumerate(names)), **sizes, **layers)
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    return model, transformers.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "evaluate_anything.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    write_scenes(tmp_path / "coco", 2, size=48, seed=0, split="val2017", workers=1)
    data = CocoPanoptic.from_root(tmp_path / "coco", "val2017")
    model, processor = tiny_mask2former([category.name for category in data.categories.categories])
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda name: processor)
    monkeypatch.setattr(transformers.Mask2FormerForUniversalSegmentation, "from_pretrained", lambda name: model)
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("target_sizes=", "threshold=0.0, target_sizes="), "evaluate_anything.md", "exec"), {})
    for command in re.findall(r"^panoptic-detr (visualize .+)$", text, flags=re.MULTILINE):
        assert cli.main(shlex.split(command)) == 0
    assert "<article" in (tmp_path / "mask2former" / "report.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "mask2former" / "errors").iterdir())) == 2
    (evaluation,) = re.findall(r"^panoptic-detr (evaluate .+)$", text, flags=re.MULTILINE)
    assert cli.main(shlex.split(evaluation)) == 0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([{"label": "cat", "mask": None}], "the mask of a segment must be an array or a picture, but got"),
        *(
            (
                {"segmentation": np.ones((2, 2), int), "segments_info": [{"id": 1, "label_id": 0, "score": 1, **wrong}]},
                f"'{next(iter(wrong))}' of a segment must be a number, but is",
            )
            for wrong in ({"id": "a"}, {"label_id": [1]}, {"score": "high"}, {"score": float("nan")})
        ),
    ],
)
def test_what_is_no_mask_and_no_number_is_named(result, message):
    with pytest.raises(InputError, match=message):
        PanopticSegmentation.from_transformers(result, [{"id": 1, "name": "cat", "isthing": 1}])

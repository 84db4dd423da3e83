"""A file from pixels to the map, and the model that it was made of, say the same."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import panoptic_detr as pd
from panoptic_detr.commands import cli
from panoptic_detr.data.transforms import target_size
from panoptic_detr.errors import InputError, PictureError
from panoptic_detr.exported import engines, parts, write
from panoptic_detr.exported.engines import NOTES
from panoptic_detr.exported.parity import Pair, default_pictures, network_input
from panoptic_detr.exported.program import TYPES
from panoptic_detr.exported.runtime import REASONS, RESULTS
from panoptic_detr.exported.runtime import SETTINGS as SETTINGS_OF_FILES
from panoptic_detr.models import tracing
from panoptic_detr.models.backbones import timm as timm_backbone
from panoptic_detr.weights import Checkpoint, archives, save_checkpoint

timm_swin = pytest.importorskip("timm.models.swin_transformer")
TINY = {"num_labels": 5, "backbone": "small", "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 32}
BOTTLENECKS = "resnet bottleneck 1x8 1x16 2x32 1x64 stem 8"
ROOT = Path(__file__).resolve().parents[2]
OF_FAMILY = {"mask_detr": {"stuff_labels": [3, 4], "num_queries": 18}}
FAMILIES = [
    "detr_r50_panoptic",
    "deformable_detr_r50_panoptic",
    "h_deformable_detr_r50_panoptic",
    "mask_detr_r50_panoptic",
]
TABLE = pd.CategoryTable.from_coco([{"id": 10 * i + 10, "name": f"class {i}", "isthing": int(i < 3)} for i in range(5)])
SETTINGS = pd.InferenceSettings(threshold=0.2, min_area=40, short_side=None)


def lively(name: str, **overrides: object) -> nn.Module:
    """A tiny model whose random weights are large enough that many queries are kept, with masks that compete."""
    family = next((values for start, values in OF_FAMILY.items() if name.startswith(start)), {"num_queries": 20})
    settings = {**TINY, **family, **overrides}
    if name.endswith("_panoptic") and "mask_detr" not in name:
        settings["mask_scale_maps"] = True  # otherwise the masks of untrained queries are all the same
    torch.manual_seed(0)
    model = pd.build_model(name, **settings).eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        if key.endswith(("query_embed.weight", "q_linear.weight", "k_linear.weight", "stuff_embed.weight")):
            parameter.data *= 4
    for key, bias in model.named_parameters():
        if "class_embed" in key and bias.dim() == 1:
            nn.init.zeros_(bias)
            bias.data[TINY["num_labels"] :] = -6  # no object
    return model


def pictures(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    blobs = draw.integers(0, 255, (count, 12, 12, 3), dtype=np.uint8)
    return [cv2.resize(blob, (width, height), interpolation=cv2.INTER_CUBIC) for blob in blobs]


def told(result: pd.PanopticSegmentation) -> tuple[object, ...]:
    segments = [(s.id, s.category_id, s.isthing, s.area, s.box, s.query, round(s.score, 4)) for s in result.segments]
    return segments, [(d.query, d.reason, d.category_id, d.area, d.into) for d in result.dropped]


def remerged(file: pd.ExportedPredictor, images: list[np.ndarray]) -> list[pd.PanopticSegmentation]:
    """What this package's own merger makes of the logits and masks that a file computes."""
    names = ("logits", "mask_logits", "mask_places")
    values = file.run(np.stack(images), names, None)
    logits, masks, places = (torch.from_numpy(value) for value in values)
    settings, (height, width) = file.settings, images[0].shape[:2]
    size = (height, width) if settings.short_side is None else target_size((height, width), settings.short_side, 1333)
    things, stuff = settings.thresholds(file.notes["no_object"])
    return [
        pd.merge_panoptic(
            logits[index],
            masks[places[:, 0] == index],
            categories=TABLE,
            size=size,
            target_size=(height, width),
            threshold=things,
            stuff_threshold=stuff,
            min_area=settings.min_area,
            min_visible=settings.min_visible,
            duplicate_stuff=settings.duplicate_stuff,
            no_object=file.notes["no_object"],
            queries=places[places[:, 0] == index, 1],
        )
        for index in range(len(images))
    ]


def assert_same(own: pd.PanopticSegmentation, theirs: pd.PanopticSegmentation, *, exact: bool) -> None:
    """The same segments and dropped queries; where random masks come within rounding of each other, but for a few pixels."""
    if exact:
        assert told(own) == told(theirs)
    for of in (
        lambda r: [(s.id, s.category_id, s.query) for s in r.segments],
        lambda r: [(d.query, d.reason, d.into) for d in r.dropped],
    ):
        assert of(own) == of(theirs)
    assert (own.segment_map == theirs.segment_map).mean() > (0.99999 if exact else 0.998)
    for segment in own.segments:  # areas and boxes are those of the map
        rows, columns = np.nonzero(own.mask(segment))
        left, top, width, height = segment.box
        assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (left, left + width, top, top + height)
        assert segment.area == len(rows)


@pytest.fixture(scope="module", autouse=True)
def one_drawn_picture():
    """Compare on one of the three, which saves seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "default_pictures", lambda: default_pictures()[:1])
        yield


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Models of the same weights are recorded once, which saves half a minute."""
    made, trace = {}, parts.trace_parts

    def remembered(model: nn.Module) -> tuple[object, object]:
        key = tuple((name, float(value.sum())) for name, value in model.state_dict().items())
        made[key] = made.get(key) or trace(model)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "trace_parts", remembered)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Predictor and file of each family, made once."""
    made = {}

    def get(name: str, ending: str = ".onnx") -> tuple[pd.Predictor, pd.ExportedPredictor]:
        if (name, ending) not in made:
            predictor = pd.Predictor(lively(name), TABLE, settings=SETTINGS)
            path = tmp_path_factory.mktemp("exported") / f"{name}{ending}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(write, "LEAST_EQUAL", 0.0)  # random masks are so close that rounding decides between them
                report = pd.export(predictor, path)
            assert max(one.logits for one in report.comparisons) < 1e-4
            assert max(one.masks for one in report.comparisons) < 1e-3
            made[name, ending] = predictor, pd.load_model(path, device="cpu")
        return made[name, ending]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_one_file_gives_the_predictors_result_for_every_size_and_batch(exported, name):
    predictor, file = exported(name)
    file.batch_size = 3
    found = 0
    for count, height, width in ((1, 96, 96), (3, 130, 101), (1, 250, 333)):
        images = pictures(count, height, width, seed=height)
        for own, exact, theirs in zip(file(images), remerged(file, images), predictor(images), strict=True):
            clear = name.startswith("mask_detr")  # its random masks differ enough to compare those of two runtimes
            assert_same(own, exact, exact=clear)
            if clear:
                assert_same(own, theirs, exact=True)
            found += len(own.segments)
    assert found >= 7


def small_swin(_timm, name, _pretrained, options):
    """In the place of timm's: both sizes of Swin, one of whose stages has shifted windows."""
    width, depths = (8, (2, 1, 1, 1)) if "tiny" in name else (16, (1, 2, 1, 1))
    sizes = {"img_size": 64, "window_size": 2, "embed_dim": width, "depths": depths, "num_heads": (1, 2, 2, 4)}
    return timm_swin.SwinTransformer(**sizes, **options), None


def backbone_of(name: str) -> str:
    """A network of the kind that a model has, but small."""
    kinds = {
        "swin_t": "swin_t",
        "swin_l": "swin_l",
        "dc5": "resnet18",
        "r101": BOTTLENECKS,
        "r50": "small",
    }
    return next(small for word, small in kinds.items() if word in name)


@pytest.mark.parametrize("name", [name for name in pd.list_models() if name.endswith("_panoptic") and name not in FAMILIES])
def test_every_model_can_be_exported(tmp_path, monkeypatch, name):
    """The families above in all their forms; the file computes what the model does, at a size that it was not recorded with."""
    monkeypatch.setattr(timm_backbone, "_create", small_swin)
    small = {"num_queries": 6, "decoder_layers": 1 if "_refine" not in name else 2, "hidden_dim": 16}
    predictor = pd.Predictor(lively(name, backbone=backbone_of(name), **small), TABLE, settings=SETTINGS)
    content = write.make_content(write.opened_source(predictor), predictor, ".onnx", size=None, precision="fp32", raw=False)
    found = Pair(write.opened_source(predictor), tmp_path / "file.onnx", content, raw=False).compare(pictures(1, 96, 130)[0])
    assert found.logits < 1e-3
    assert found.boxes < 1e-4
    assert 0 < found.masks < 1e-2


def test_a_hundred_masks_and_large_pictures(tmp_path):
    """One file for 96 x 96, all of a hundred queries kept, and 800 x 1066."""
    settings = replace(SETTINGS, threshold=0.0)
    predictor = pd.Predictor(lively("detr_r50_panoptic", num_queries=100, hidden_dim=16), TABLE, settings=settings)
    path = tmp_path / "file.onnx"
    content = write.make_content(write.opened_source(predictor), predictor, ".onnx", size=None, precision="fp32", raw=False)
    write.write_files(path, content)
    file = pd.load_model(path, device="cpu")
    for height, width, masks in ((96, 96, 100), (800, 1066, 3)):
        picture = pictures(1, height, width, seed=1)[0]
        file.settings = replace(settings, max_segments=masks)
        (places,) = file.run(picture[None], ["mask_places"])
        assert len(places) == masks
        own, (exact,) = file(picture), remerged(file, [picture])
        assert own.segment_map.shape == (height, width)
        assert_same(own, exact, exact=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"min_area": 1500},  # in cascades
        {"min_visible": 0.6},
        {"max_segments": 3},
        {"duplicate_stuff": "keep_first"},
        {"threshold": 0.0},
        {"threshold": 1.0},  # nothing
        {"threshold": 0.5, "stuff_threshold": 0.1},
        {"short_side": 128},
    ],
    ids=str,
)
def test_settings_are_inputs_of_the_file(exported, changed):
    _, file = exported("detr_r50_panoptic")
    picture = pictures(1, 180, 181, seed=3)[0]
    file.settings = replace(SETTINGS, **changed)
    own, (exact,) = file(picture), remerged(file, [picture])
    file.settings = SETTINGS
    assert_same(own, exact, exact=False)


def test_cascades_unions_and_hidden_things_were_among_it(exported):
    predictor, file = exported("detr_r50_panoptic")
    picture = pictures(1, 180, 180, seed=3)[0]
    reasons = set()
    for changed in ({"min_area": 1500}, {"min_visible": 0.6}, {}):
        file.settings = replace(SETTINGS, **changed)
        reasons |= {dropped.reason for dropped in file(picture).dropped}
    file.settings = predictor.settings
    assert {"small", "suppressed", "merged"} <= reasons


def test_the_file_says_what_it_is(exported):
    _, file = exported("detr_r50_panoptic")
    assert file.categories == TABLE
    assert file.settings == SETTINGS
    assert file.notes["model"]["name"] == "detr_r50_panoptic"
    assert json.loads(file.engine.notes)["versions"]["torch"]
    assert {node.domain for node in __import__("onnx").load(file.path).graph.node} == {""}  # plain ONNX


def test_a_fixed_size_and_smaller_weights(tmp_path):
    predictor = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=SETTINGS)
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        report = pd.export(predictor, tmp_path / f"{precision}.onnx", size=(96, 128), precision=precision)
        sizes[precision] = report.megabytes
        file = pd.load_model(report.path, device="cpu")
        assert file(pictures(1, 70, 50)[0]).segment_map.shape == (70, 50)
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    file.settings = replace(SETTINGS, short_side=64)
    with pytest.raises(InputError, match="exported for 128 x 96 pixels"):
        file(pictures(1, 70, 50)[0])


def products_in_bytes(path: Path) -> list[bool]:
    """Whether products read bytes outside and inside of the loop over queries."""
    if path.suffix == ".onnx":
        graph = import_module("onnx").load(path).graph
        loop = next(node for node in graph.node if node.op_type == "Loop").attribute[0].g
        return ["QuantizeLinear" in {node.op_type for node in part.node} for part in (graph, loop)]
    graph = engines.openvino_core().read_model(path)
    loop = next(node for node in graph.get_ops() if node.get_type_name() == "Loop").get_function()
    return ["FakeQuantize" in {node.get_type_name() for node in part.get_ops()} for part in (graph, loop)]


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_calibrated_bytes_compute_nearly_the_same(tmp_path, capsys, ending):
    """Of another size than those that it was calibrated on; its products read bytes, those within the loop over queries too."""
    pytest.importorskip({".onnx": "onnx", ".xml": "openvino"}[ending])
    predictor = pd.Predictor(lively("detr_r50_panoptic"), TABLE, settings=SETTINGS)
    source, folder, path = tmp_path / "model.pt", tmp_path / "pictures", tmp_path / f"file{ending}"
    save_checkpoint(source, Checkpoint(predictor.model.spec, predictor.model.state_dict(), TABLE, SETTINGS.to_dict()))
    folder.mkdir()
    for number, picture in enumerate(pictures(3, 130, 101)):
        cv2.imwrite(str(folder / f"{number}.png"), picture[..., ::-1])
    assert cli.main(["export", str(source), str(path), "--precision", "int8", "--calibrate", str(folder)]) == 0
    assert "NOT EQUAL: on 1 of 1 pictures" in capsys.readouterr().err
    assert products_in_bytes(path) == [True, True]
    file, picture = pd.load_model(path, device="cpu"), pictures(1, 96, 160, seed=5)[0]
    logits, masks, places = file.run(picture[None], ("logits", "mask_logits", "mask_places"))
    with torch.no_grad():
        image = network_input(picture, SETTINGS, None)[None]
        output = predictor.model(image, torch.zeros_like(image[:, 0], dtype=torch.bool))
        own_masks = output.segment([torch.from_numpy(places[:, 1])])[0].numpy()
    for own, theirs in ((output.logits[-1].numpy(), logits), (own_masks, masks)):
        difference = np.abs(own - theirs).mean() / np.abs(own - own.mean()).mean()
        assert 0.001 < difference < 0.2


def test_group_normalisation_by_products_is_the_same():
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 12, 7, 9) * 3 + 20 * torch.randn(1, 12, 1, 1)
    assert torch.allclose(parts.NormByProducts(norm)(x), norm(x), atol=1e-4)


def test_files_compute_no_outputs_of_earlier_layers():
    model = lively("detr_r50")
    images, padding = torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool)
    with torch.no_grad():
        all_layers = model(images, padding)
        with tracing.last_layer():
            last = model(images, padding)
    assert (len(all_layers.logits), len(last.logits)) == (2, 1)
    assert torch.equal(all_layers.logits[-1:], last.logits)
    assert torch.equal(all_layers.boxes[-1:], last.boxes)


def test_what_cannot_calibrate_is_refused(tmp_path, monkeypatch):
    empty, text = tmp_path / "empty", tmp_path / "text"
    for folder in (empty, text):
        folder.mkdir()
    (text / "note.jpg").write_text("no picture")
    for folder, precision, says in (
        (empty, "int8", "empty: no pictures lie in this folder itself"),
        (text, "int8", r"note\.jpg"),
        (tmp_path / "gone", "int8", "gone is no folder; --calibrate takes one of pictures"),
        (empty, "fp32", "--calibrate goes with --precision int8, not fp32"),
        (5, "int8", "no path"),
    ):
        with pytest.raises(InputError, match=says):
            pd.export("detr_r50_panoptic", tmp_path / "file.onnx", precision=precision, calibrate=folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"--calibrate needs onnxruntime: pip install 'panoptic-detr\[export\]'"):
        pd.export("detr_r50_panoptic", tmp_path / "file.xml", precision="int8", calibrate=text)
    assert not (tmp_path / "file.onnx").exists()


def test_raw_outputs_of_a_detector(tmp_path):
    model = lively("detr_r50")
    source = pd.Predictor(lively("detr_r50_panoptic"), TABLE, settings=SETTINGS)
    source.model = model
    with pytest.raises(InputError, match="--raw"):
        pd.export(source, tmp_path / "boxes.onnx")
    report = pd.export(source, tmp_path / "boxes.onnx", raw=True)
    assert max(one.logits for one in report.comparisons) < 1e-3
    assert max(one.boxes for one in report.comparisons) < 1e-4
    with pytest.raises(InputError, match="exported with --raw"):
        pd.load_model(report.path)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("file.xyz", {}, "end in .onnx or .xml or .pt2"),
        ("file.onnx", {"size": (8, 100)}, "32 to"),
        ("file.xml", {"format": "onnx"}, "ends as a file of openvino"),
        ("file.onnx", {"size": 5}, "but got 5"),
        ("file.pt2", {"precision": "int8"}, "float32"),
        ("file.pt2", {"raw": True}, "--raw"),
        ("file.onnx", {"precision": "int3"}, "fp32, fp16, int8"),
        ("file.onnx", {"check": 5}, "check must be a list of pictures, but got 5"),
        ("file.onnx", {"check_data": "root"}, "root and the split of a data set, but got 'root'"),
        ("file.onnx", {"check_data": (".", "val"), "raw": True}, "no PQ"),
        ("file.onnx", {"check_data": (".", "val"), "most_lost": -1}, "points of PQ, 0 or more, but got -1"),
        ("file.onnx", {"most_lost": 0.5}, "name one"),
        ("file.onnx", {"check": ["gone.jpg"]}, "gone.jpg: there is no such image"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, options, says):
    with pytest.raises(InputError, match=says):
        pd.export("detr_r50_panoptic", tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path, monkeypatch):
    predictor = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=SETTINGS)
    other = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=replace(SETTINGS, min_area=3000))
    made = write.make_content(write.opened_source(other), other, ".onnx", size=None, precision="fp32", raw=False)
    monkeypatch.setattr(write, "make_content", lambda *_, **__: made)
    with pytest.raises(InputError, match="is not written: on the picture"):
        pd.export(predictor, tmp_path / "file.onnx")
    assert list(tmp_path.iterdir()) == []


def write_truth(root: Path, images: list[np.ndarray], maps: list[pd.PanopticSegmentation]) -> None:
    """A data set on which whoever predicts these maps has a PQ of 100."""
    for folder in ("val", "panoptic_val", "annotations"):
        (root / folder).mkdir(parents=True)
    content = {"categories": TABLE.to_dict()["categories"], "images": [], "annotations": []}
    for number, (image, result) in enumerate(zip(images, maps, strict=True)):
        cv2.imwrite(str(root / "val" / f"{number}.png"), image[..., ::-1])
        result.save(root / "panoptic_val" / f"{number}.png")
        size = {"height": image.shape[0], "width": image.shape[1]}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        content["annotations"].append(result.to_coco(number))
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(content))


def test_the_quality_lost_on_a_data_set_is_told_and_limited(exported, tmp_path, monkeypatch, capsys):
    predictor, file = exported("mask_detr_r50_panoptic")
    monkeypatch.setattr(write, "make_content", lambda *_, **__: {".onnx": file.path.read_bytes()})
    source, output = tmp_path / "model.pt", tmp_path / "out" / "file.onnx"
    save_checkpoint(source, Checkpoint(predictor.model.spec, predictor.model.state_dict(), TABLE, SETTINGS.to_dict()))
    images = pictures(2, 96, 101, seed=3)
    write_truth(tmp_path / "set", images, predictor(images))
    check = ["--check", str(tmp_path / "set"), "val", "--most-lost", "0.5"]
    assert cli.main(["export", str(source), str(output), *check, "--check", str(tmp_path / "set" / "val" / "0.png")]) == 0
    out = capsys.readouterr().out
    assert "│ 0.png " in out
    assert "2 images: 0.00 points of PQ lost" in out
    assert "│ file  │ 100.00 │" in out
    output.unlink()
    other = pd.Predictor(predictor.model, TABLE, settings=replace(SETTINGS, min_area=1500))  # so the file is of another model
    write_truth(tmp_path / "other", images, other(images))
    asked = {"precision": "int8", "check_data": (tmp_path / "other", "val")}
    with pytest.raises(InputError, match=r"is not written: it loses \d+\.\d\d points of PQ on 2 images, and at most 5"):
        pd.export(other, output, most_lost=5, **asked)
    assert list(output.parent.iterdir()) == []
    quality = pd.export(other, output, **asked).quality
    assert quality.model.panoptic.all.pq == 1
    assert quality.points_lost == pytest.approx(100 - 100 * quality.file.panoptic.all.pq)
    assert quality.points_lost > 5
    with pytest.raises(SystemExit):
        cli.main(["export", str(source), str(output), "--check", str(tmp_path / "set")])
    assert "by its root folder and split" in capsys.readouterr().err


def test_files_that_are_none_of_ours(tmp_path, exported):
    _, file = exported("detr_r50_panoptic")
    onnx = pytest.importorskip("onnx")
    cut, foreign = tmp_path / "cut.onnx", tmp_path / "foreign.onnx"
    cut.write_bytes(file.path.read_bytes()[:20000])
    model = onnx.load(file.path)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    for path, says in ((cut, "damaged"), (foreign, "not one that"), (tmp_path / "none.onnx", "there is no exported file")):
        with pytest.raises(InputError, match=says):
            pd.load_model(path)
    with pytest.raises(InputError, match="no device 'quantum'"):
        pd.load_model(file.path, device="quantum")
    for thing in (None, b"bytes", tmp_path / "no.jpg"):
        with pytest.raises(PictureError):
            file(thing)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "but is a list"),
        ("{}", "'format' must be int, but is missing"),
        ({"format": 99}, "newer panoptic_detr"),
        ({"categories": None}, "'categories' must be names with values, but is missing"),
        ({"categories": {"labels": "id", "num_labels": 1, "categories": []}}, "no categories"),
        ({"settings": None}, "'settings' must be names with values"),
        ({"settings": {"threshold": 7}}, "inference.threshold"),
        ({"size": [1]}, "'size' must be height and width"),
        ("boxes", "it has no output boxes"),
    ],
)
def test_a_file_that_was_changed_is_refused_in_a_sentence(tmp_path, exported, change, says):
    onnx = pytest.importorskip("onnx")
    model, path = onnx.load(exported("detr_r50_panoptic")[1].path), tmp_path / "changed.onnx"
    (notes,) = [entry for entry in model.metadata_props if entry.key == NOTES]
    if change == "boxes":
        model.graph.output.remove(next(port for port in model.graph.output if port.name == "boxes"))
    else:
        notes.value = change if isinstance(change, str) else json.dumps({**json.loads(notes.value), **change})
    onnx.save(model, path)
    with pytest.raises(InputError, match=says) as told:
        pd.load_model(path)
    assert str(told.value).startswith(str(path))
    assert "export the model again" in str(told.value) or "update this one" in str(told.value)


def test_openvino_gives_the_same(exported):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    reasons, none = set(), {"threshold": 1.0}
    file.batch_size = 2
    for count, side, changed in (
        *((1, 96, {}), (2, 180, {"min_area": 1500}), (1, 180, {"min_visible": 0.6, "max_segments": 9}), (1, 130, none)),
        *((1, 180, {"duplicate_stuff": "keep_first", "short_side": 90}), (1, 180, {"threshold": 0.0})),
    ):
        images = pictures(count, side, side, seed=3)
        file.settings = replace(SETTINGS, **changed)
        for own, exact in zip(file(images), remerged(file, images), strict=True):
            assert_same(own, exact, exact=False)
            assert (len(own.segments) > 0) == (changed != none)
            reasons |= {dropped.reason for dropped in own.dropped}
    file.settings = SETTINGS
    assert {"small", "suppressed", "merged", "low score"} <= reasons


def test_what_openvino_compiled_is_kept_where_somebody_says(exported, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    monkeypatch.setenv("PANOPTIC_DETR_OPENVINO_CACHE", str(tmp_path / "kept"))
    first = pd.load_model(file.path, device="cpu")
    (blob,) = (tmp_path / "kept").glob("*.blob")
    written = blob.stat().st_mtime_ns
    second = pd.load_model(file.path, device="cpu")
    assert [blob.stat().st_mtime_ns for blob in (tmp_path / "kept").glob("*.blob")] == [written]
    images = pictures(1, 96, 96, seed=3)
    for one, other in zip(first(images), second(images), strict=True):
        assert_same(one, other, exact=True)


def test_signals_arrive_after_models_of_openvino_are_gone(exported, tmp_path):
    """Each of its own had left the stack of signals that an earlier one had freed: a segmentation fault."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("detr_r50_panoptic", ".xml")
    code = f"""
        import signal, panoptic_detr as pd
        signal.signal(signal.SIGTERM, lambda *_: print("arrived"))
        first, second = (pd.load_model({str(file.path)!r}, device="cpu") for _ in range(2))
        del first, second
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_every_kind_of_file_is_known_everywhere():
    assert set(write.KINDS) == set(engines.KINDS) == set(archives.EXPORTED)
    assert {kind.name for kind in write.KINDS.values()} == set(get_args(write.FileFormat))


def test_a_program_of_pytorch_is_written_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("program", "parts"):
        monkeypatch.delitem(sys.modules, f"panoptic_detr.exported.{name}", raising=False)
    assert import_module("panoptic_detr.exported.program").PER_QUERY == 4


def test_weights_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is there already"):
        pd.export("detr_r50_panoptic", tmp_path / "pytorch_model.xml")
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"weights"


def test_files_of_openvino_that_are_none_of_ours(exported, tmp_path):
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    assert json.loads(file.engine.notes)["versions"]["openvino"]
    with pytest.raises(InputError, match="no device 'cuda' for OpenVINO"):
        pd.load_model(file.path, device="cuda")
    with pytest.raises(InputError, match="fp32 or bf16, not in 'fp16'"):
        pd.load_model(file.path, device="cpu", precision="fp16")
    alone, cut, foreign = (tmp_path / f"{name}.xml" for name in ("alone", "cut", "foreign"))
    alone.write_bytes(file.path.read_bytes())
    cut.write_bytes(file.path.read_bytes()[:5000])
    cut.with_suffix(".bin").write_bytes(b"")
    zero = openvino.opset13.parameter([1], np.float32, name="image")
    openvino.save_model(openvino.Model([openvino.opset13.relu(zero)], [zero]), foreign)
    for path, says in ((alone, "alone.bin must lie beside it"), (cut, "damaged"), (foreign, "not one that")):
        with pytest.raises(InputError, match=says):
            pd.load_model(path, device="cpu")


def test_a_program_of_torch_export_runs_without_this_package(tmp_path):
    """One file, other sizes and numbers of pictures than it was recorded with, in a process that cannot import us."""
    settings = replace(SETTINGS, min_area=1500, min_visible=0.1)
    predictor = pd.Predictor(lively("mask_detr_r50_panoptic", encoder_layers=0, decoder_layers=1), TABLE, settings=settings)
    path = tmp_path / "out.pt2"
    opened = write.opened_source(predictor)
    write.write_files(path, write.make_content(opened, predictor, ".pt2", size=(128, 96), precision="fp32", raw=False))
    images = np.stack(pictures(3, 128, 96, seed=3))
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, json, torch, numpy as np\n"
        "sys.modules['panoptic_detr'] = sys.modules['onnx'] = None\n"
        "notes = {'panoptic_detr': ''}\n"
        f"model = torch.export.load({str(path)!r}, extra_files=notes).module()\n"
        "assert json.loads(notes['panoptic_detr'])['size'] == [128, 96]\n"
        f"given = {{'image': torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r}))}}\n"
        "for name, value in (('threshold', 0.2), ('stuff_threshold', 0.2), ('min_area', 1500), ('min_visible', 0.1),\n"
        "                    ('max_segments', 0), ('keep_first', False)):\n"
        "    given[name] = torch.tensor(value)\n"
        f"torch.save(model(**given), {str(tmp_path / 'found.pt')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    predictor.settings = replace(settings, short_side=None)
    reasons = set()
    for index, theirs in enumerate(predictor(list(images))):
        assert (found["segment_map"][index].numpy() == theirs.segment_map).mean() > 0.99999
        rows = {name: values[index].tolist() for name, values in found.items() if name in RESULTS}
        for s in theirs.segments:
            assert [rows[name][s.query] for name in ("ids", "category_ids", "areas")] == [s.id, s.category_id, s.area]
            assert rows["boxes"][s.query] == list(s.box)
        for dropped in theirs.dropped:
            assert (REASONS[rows["reasons"][dropped.query]], rows["ids"][dropped.query]) == (dropped.reason, 0)
            reasons.add(dropped.reason)
    assert {"small", "suppressed"} <= reasons


class Seen(nn.Module):
    """A program with the inputs and outputs of an exported one: `areas` is the canvas's, `scores` the threshold, the rest 0."""

    def forward(self, image, canvas, threshold, stuff_threshold, min_area, min_visible, max_segments, keep_first):
        outputs = {name: image.sum() * 0 + min_area * 0 for name in RESULTS}
        return outputs | {"areas": torch.ones_like(canvas, dtype=torch.long).sum(), "scores": threshold + 0}


def test_programs_of_torch_export_are_run_and_refused(exported, tmp_path):
    _, file = exported("mask_detr_r50_panoptic")
    path, free = tmp_path / "seen.pt2", torch.export.Dim.AUTO
    given = {"image": torch.zeros((2, 150, 170, 3), dtype=torch.uint8), "canvas": torch.zeros((160, 192), dtype=torch.uint8)}
    given |= {
        name: torch.zeros((), dtype=TYPES[kind]) for name, kind in SETTINGS_OF_FILES.items() if not name.endswith("_side")
    }
    shapes = {**dict.fromkeys(given), "image": dict.fromkeys((0, 1, 2), free), "canvas": {0: free, 1: free}}
    program = torch.export.export(Seen(), (), given, dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={NOTES: json.dumps(file.notes)})
    opened = pd.load_model(path, device="cpu")
    for short, canvas in ((None, (120, 90)), (200, target_size((120, 90), 200, 1333))):
        opened.settings = replace(SETTINGS, short_side=short, threshold=0.25)
        assert [float(v) for v in opened.run(np.zeros((1, 120, 90, 3), np.uint8), ("areas", "scores"))] == [
            np.prod(canvas),
            0.25,
        ]
    with pytest.raises(InputError, match="runs on the CPU only"):
        pd.load_model(path, device="cuda")
    torch.export.save(program, path)
    with pytest.raises(InputError, match="not one that"):
        pd.load_model(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="damaged"):
        pd.load_model(path)


def test_weights_of_an_older_export_never_lie_beside_a_new_file(tmp_path, monkeypatch):
    path = tmp_path / "out.xml"
    path.write_bytes(b"old")
    monkeypatch.setattr(write, "write_whole", lambda path, _: (_ for _ in ()).throw(OSError(f"disk full: {path.name}")))
    with pytest.raises(OSError, match=r"out\.bin"):
        write.write_files(path, {".xml": b"new", ".bin": b"new"})
    assert list(tmp_path.iterdir()) == []


def test_prediction_needs_no_torch(exported, tmp_path):
    """In a process where torch cannot be imported, and by the program of the documentation."""
    _, file = exported("detr_r50_panoptic")
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), pictures(1, 180, 180, seed=3)[0][..., ::-1])
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import panoptic_detr as pd\n"
        f"result = pd.load_model({str(file.path)!r}, device='cpu')({str(picture)!r})\n"
        "print(len(result.segments), int(result.segment_map.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = file(picture)
    assert done.stdout.split() == [str(len(own.segments)), str(own.segment_map.sum())]
    documented = (ROOT / "docs" / "deploy.md").read_text().split("```python\n")[1].split("```")[0]
    script, output = tmp_path / "program.py", tmp_path / "map.png"
    script.write_text(f"import sys; sys.modules['torch'] = sys.modules['panoptic_detr'] = None\n{documented}")
    arguments = [sys.executable, script, file.path, picture, output]
    told_lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in told_lines] == [str(segment.id) for segment in own.segments]
    assert cv2.imread(str(output)).shape == (180, 180, 3)

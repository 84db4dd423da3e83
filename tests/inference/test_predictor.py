"""Pictures of every kind in, panoptic maps out; checkpoints; what predictors say of unusable input."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.loading import collate
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import CheckpointError, PictureError
from panoptic_detr.images import upright_rgb
from panoptic_detr.inference import predictor as predictor_module
from panoptic_detr.inference.predictor import Predictor, load_model, predict_batch
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Sample, Target
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.zoo import build_model


def photo(height=60, width=80, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def batch_of(*pictures, short_side=64):
    nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    transform = eval_transform(short_side, 128)
    return collate([transform(Sample(image_tensor(p), nothing, p.shape[:2])) for p in pictures])


def same(first, second):
    assert np.array_equal(first.segment_map, second.segment_map)
    assert [(s.id, s.category_id, s.area, s.query) for s in first.segments] == [
        (s.id, s.category_id, s.area, s.query) for s in second.segments
    ]


def test_map_has_the_size_of_the_picture_and_every_query_is_accounted_for(predictor, table):
    result = predictor(photo())
    assert result.segment_map.shape == (60, 80)
    assert len(result.segments) >= 2
    assert sum(s.area for s in result.segments) == 60 * 80
    assert sorted([s.query for s in result.segments] + [d.query for d in result.dropped]) == list(range(12))
    assert result.categories is table


def test_a_predictor_says_itself_in_three_lines(predictor, table):
    model, classes, settings = repr(predictor).split("\n")
    assert model.startswith("Predictor of ")
    assert model.endswith(" million parameters, cpu, fp32")
    assert classes.startswith(f"{len(table.things)} things and {len(table.stuff)} stuff classes: {table.categories[0].name}, ")
    assert "threshold 0" in settings
    assert "short_side 64" in settings


def test_the_same_picture_in_every_form(predictor, tmp_path):
    rgb = photo()
    expected = predictor(rgb)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    for form in (path, str(path), Image.fromarray(rgb), Image.open(path)):
        same(predictor(form), expected)
    assert predictor(path).image_id == "photo"


@pytest.mark.parametrize("kind", ["grey", "grey 16 bit", "RGBA", "RGB 16 bit", "palette"])
def test_unusual_pictures(predictor, tmp_path, kind):
    rgb = photo()
    grey = rgb[..., 1]
    alpha = np.full((60, 80, 1), 7, np.uint8)
    path = tmp_path / "picture.png"
    stored, shown = {
        "grey": (grey, np.repeat(grey[..., None], 3, axis=2)),
        "grey 16 bit": (grey.astype(np.uint16) << 8, np.repeat(grey[..., None], 3, axis=2)),
        "RGBA": (np.concatenate([rgb[..., ::-1], alpha], axis=2), rgb),
        "RGB 16 bit": (rgb[..., ::-1].astype(np.uint16) << 8, rgb),
        "palette": (None, np.asarray(Image.fromarray(rgb).convert("P").convert("RGB"))),
    }[kind]
    if stored is None:
        Image.fromarray(rgb).convert("P").save(path)
    else:
        cv2.imwrite(str(path), stored)
    assert np.array_equal(upright_rgb(path), shown)
    assert np.array_equal(upright_rgb(Image.open(path)), shown) or kind == "RGB 16 bit"  # Pillow reads 8 bits only
    same(predictor(path), predictor(np.ascontiguousarray(shown)))


def test_photographs_are_turned_upright(predictor, tmp_path):
    rgb = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    path = tmp_path / "phone.png"
    Image.fromarray(rgb).save(path, exif=exif)
    jpeg = tmp_path / "phone.jpg"
    Image.fromarray(rgb).save(jpeg, exif=exif, quality=95)
    upright = np.rot90(rgb, -1)
    assert np.array_equal(upright_rgb(Image.open(path)), upright)
    assert upright_rgb(jpeg).shape == (80, 60, 3)
    assert np.abs(upright_rgb(jpeg).astype(int) - upright).mean() < 5
    assert predictor(jpeg).segment_map.shape == (80, 60)


def test_lists_keep_their_order_and_equal_single_pictures(model, table):
    pictures = [photo(60, 80, 1), photo(80, 60, 2), photo(50, 90, 3), photo(64, 64, 4), photo(60, 80, 5)]
    settings = InferenceSettings(threshold=0.3, min_area=1, short_side=64, long_side=128)
    single = Predictor(model, table, settings=settings, batch_size=1)
    batched = Predictor(model, table, settings=settings, batch_size=1)(tuple(pictures))
    for picture, result in zip(pictures, batched, strict=True):
        same(result, single(picture))
    assert single([]) == []


def test_batches_group_similar_sizes(model, table, monkeypatch):
    pictures = [photo(60, 80, 1), photo(80, 60, 2), photo(60, 80, 3), photo(80, 60, 4)]
    shapes = []
    original = predictor_module.predict_batch

    def watched(model, batch, categories, settings):
        shapes.append(tuple(batch.images.shape))
        return original(model, batch, categories, settings)

    monkeypatch.setattr(predictor_module, "predict_batch", watched)
    settings = InferenceSettings(threshold=0.3, short_side=64)
    results = Predictor(model, table, settings=settings, batch_size=2)(pictures)
    assert shapes == [(2, 3, 64, 85), (2, 3, 85, 64)]
    assert [r.segment_map.shape for r in results] == [(60, 80), (80, 60), (60, 80), (80, 60)]


def test_threshold_of_a_call_is_for_things_and_stuff(model, table):
    settings = InferenceSettings(threshold=0.3, stuff_threshold=0.1, short_side=64)
    predict = Predictor(model, table, settings=settings)
    scores = [s.score for s in predict(photo(), threshold=0.0).segments]
    cut = float(np.median(scores))
    assert {s.score > cut for s in predict(photo(), cut).segments} == {True}
    assert predict(photo(), threshold=1.0).segments == []
    assert predict.settings is settings


def test_masks_are_asked_for_confident_queries_only(model, table):
    class Watched(torch.nn.Module):
        asked = None

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, padding_mask):
            output = self.model(images, padding_mask)

            def segmenter(inner, queries):
                self.asked = [q.tolist() for q in queries]
                return self.model.segment(inner, queries)

            return replace(output, segmenter=segmenter)

    watched = Watched().eval()
    batch = batch_of(photo(seed=1), photo(seed=2))
    with torch.no_grad():
        probabilities = model(batch.images, batch.padding_mask).logits[-1].softmax(-1)
    best, labels = probabilities.max(-1)
    threshold = float(best.median())
    results = predict_batch(watched, batch, table, InferenceSettings(threshold=threshold))
    expected = [torch.nonzero((labels[i] < 3) & (best[i] > threshold)).flatten().tolist() for i in range(2)]
    assert watched.asked == expected
    assert any(0 < len(queries) < 12 for queries in expected)
    assert len(results) == 2

    predict_batch(watched, batch, table, InferenceSettings(threshold=threshold, max_segments=1))
    assert [len(queries) for queries in watched.asked] == [min(1, len(queries)) for queries in expected]
    for queries, row, kept in zip(watched.asked, best, expected, strict=True):
        assert not queries or float(row[queries[0]]) == float(row[kept].max())


class Halves(torch.nn.Module):
    """Sees a cat in the left 32 pixels of every image and sky to the right of them."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, padding_mask):
        batch, _, height, width = images.shape
        padding = torch.zeros(batch, 1, 1, dtype=torch.bool)
        logits = 9 * torch.eye(4)[[0, 2]].expand(1, batch, 2, 4)

        def segmenter(output, queries):
            distance = 8.0 - (torch.arange(width // 4) + 0.5).expand(height // 4, -1)  # mask cells to the border
            return [torch.stack([distance, -distance])[q] for q in queries]

        nothing = torch.zeros(batch, 1, 1, 1)
        memory = FeatureLevel(nothing, padding, 32)
        states, boxes = torch.zeros(batch, 2, 1), torch.zeros(1, batch, 2, 4)
        return DetectorOutput(logits, boxes, states, memory, nothing, (), segmenter=segmenter)


def test_images_of_a_padded_batch_get_maps_of_their_own_size(table):
    batch = batch_of(photo(64, 64, 1), photo(64, 128, 2), photo(32, 40, 3))
    small, wide, enlarged = predict_batch(Halves().eval(), batch, table)
    assert batch.images.shape == (3, 3, 64, 128)
    assert batch.sizes[2] == (64, 80)
    for result, (height, width), left in ((small, (64, 64), 32), (wide, (64, 128), 32), (enlarged, (32, 40), 16)):
        assert result.segment_map.shape == (height, width)
        assert [(s.category_id, s.box) for s in result.segments] == [
            (3, (0, 0, left, height)),
            (10, (left, 0, width - left, height)),
        ]


def test_training_mode_is_refused(model, table):
    with pytest.raises(ValueError, match=r"eval mode .* call model\.eval\(\)"):
        predict_batch(model.train(), batch_of(photo()), table)


def test_a_wrong_class_table_is_refused(model):
    with pytest.raises(ValueError, match="logits have 4 slots, but the category table means 250 label slots"):
        predict_batch(model, batch_of(photo()), coco_categories())


def test_bf16(model, table):
    settings = InferenceSettings(threshold=0.3, min_area=1, short_side=64)
    exact = Predictor(model, table, settings=settings)(photo(), 0.0)
    rough = Predictor(model, table, settings=settings, precision="bf16")(photo(), 0.0)
    assert rough.segments
    scores = {s.query: s.score for s in exact.segments}
    shared = [s for s in rough.segments if s.query in scores]
    assert shared
    assert all(abs(s.score - scores[s.query]) < 0.05 for s in shared)


def test_saved_and_loaded_predictor_predicts_the_same(predictor, table, tmp_path):
    path = predictor.save(tmp_path / "model.pt")
    loaded = load_model(path)
    assert loaded.settings == predictor.settings
    assert loaded.categories == table
    same(loaded(photo()), predictor(photo()))


def test_published_labels_need_no_table_in_the_checkpoint(tmp_path):
    model = build_model("detr_r50_panoptic", backbone="small", hidden_dim=32, encoder_layers=0, decoder_layers=1, num_queries=2)
    path = save_checkpoint(tmp_path / "published.pt", Checkpoint(model.spec, model.state_dict()))
    assert load_model(path).categories == coco_categories()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "does not say what its 3 labels mean"),
        ({"inference": {"treshold": 0.5}}, "unknown setting 'inference.treshold'; did you mean 'inference.threshold'"),
        ({"inference": {"threshold": 5}}, r"settings: setting 'inference.threshold' must be in \[0, 1\], but got 5"),
    ],
)
def test_unusable_checkpoints(predictor, tmp_path, change, message):
    path = predictor.save(tmp_path / "model.pt")
    save_checkpoint(path, replace(load_checkpoint(path), **change))
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_a_detector_without_mask_head_is_refused(table, tmp_path):
    detector = build_model("detr_r50", num_labels=3, backbone="small", hidden_dim=32, encoder_layers=0, decoder_layers=1)
    path = save_checkpoint(tmp_path / "boxes.pt", Checkpoint(detector.spec, detector.state_dict(), table))
    with pytest.raises(ValueError, match=r"'detr_r50' is a detector without a mask head; .*train_masks"):
        load_model(path)


def test_a_detector_that_makes_its_masks_itself_is_used_after_its_first_stage(table, tmp_path):
    torch.manual_seed(0)
    tiny = {"hidden_dim": 32, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 4, "stuff_labels": [2]}
    detector = build_model("mask_detr_r50", num_labels=3, backbone="small", backbone_norm="batch", **tiny)
    path = save_checkpoint(
        tmp_path / "boxes.pt", Checkpoint(detector.spec, detector.state_dict(), table, {"threshold": 0.0, "short_side": 64})
    )
    predictor = load_model(path)
    assert predictor(photo()).segments
    same(load_model(predictor.save(tmp_path / "panoptic.pt"))(photo()), predictor(photo()))
    assert load_checkpoint(tmp_path / "panoptic.pt").model.name == "mask_detr_r50_panoptic"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pt", "no checkpoint at 'missing.pt'"),
        ("runs/missing", "no checkpoint at 'runs/missing'"),
        ("detr_r50_panoptik", "there is no model 'detr_r50_panoptik'; the nearest are detr_r50_panoptic"),
        ("h_deformable_detr_swin_l_panoptic", "no weights are published"),
    ],
)
def test_neither_checkpoint_nor_model(name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_published_name_loads_published_weights(model, monkeypatch):
    big = build_model("detr_r50_panoptic", backbone="small", hidden_dim=32, encoder_layers=0, decoder_layers=1, num_queries=2)
    published = {"detr_r50_panoptic": Checkpoint(big.spec, big.state_dict())}
    monkeypatch.setattr("panoptic_detr.weights.open.load_published", published.__getitem__)
    loaded = load_model("detr_r50_panoptic")
    assert loaded.model.spec == big.spec
    assert all(torch.equal(value, big.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    assert (len(loaded.categories.things), len(loaded.categories.stuff)) == (80, 53)


def test_unreadable_pictures(predictor, tmp_path):
    with pytest.raises(PictureError, match=r"gone\.jpg: there is no such image"):
        predictor(tmp_path / "gone.jpg")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n not really")
    with pytest.raises(PictureError, match=r"broken\.png: not a readable image"):
        predictor([photo(), broken])
    with pytest.raises(PictureError, match=r"must be \(H, W\).*got \(3, 60, 80\)"):
        predictor(np.zeros((3, 60, 80), np.uint8))


def test_unusable_arguments(model, table):
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16', but got 'fp16'"):
        Predictor(model, table, precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not available on this machine; use 'cpu' or 'auto'"):
            Predictor(model, table, device="cuda")
    with pytest.raises(ValueError, match="categories must be a CategoryTable, but got None"):
        Predictor(model, None)
    with pytest.raises(ValueError, match="batch_size must be at least 1, but got 0"):
        Predictor(model, table, batch_size=0)
    with pytest.raises(ValueError, match=r"inference\.threshold' must be a number, but got 'x'"):
        InferenceSettings(threshold="x")
    for name in ("", None, "a" * 5000):
        with pytest.raises(ValueError, match="a model must be named by a file, a folder or a name"):
            load_model(name)
    unspecified = Predictor(model, table)
    del model.spec
    with pytest.raises(ValueError, match="not made by build_model"):
        unspecified.save("anywhere.pt")


def test_categories_of_the_predictor_are_those_of_the_table(predictor):
    assert isinstance(predictor.categories, CategoryTable)
    assert not predictor.model.training


def test_what_is_no_picture_gets_a_sentence_of_its_own(predictor):
    for thing, told in [
        (None, "NoneType is no picture: give a path"),
        (b"png", "bytes is no picture: decode the bytes first"),
        ({"a": 1}, "dict is no picture: give a path"),
        ((photo() for _ in range(2)), "generator is no picture: predictor.stream"),
        ([[photo()]], "list is no picture"),
        (5, "int is no picture: give a path"),
        (np.full((8, 8, 3), np.nan), "this one has NaN or infinity"),
    ]:
        with pytest.raises(PictureError, match=told):
            predictor(thing)


def test_a_stream_takes_pictures_as_they_come(predictor):
    taken = []

    def pictures():
        for seed in range(3):
            taken.append(seed)
            yield photo(seed=seed)

    for thing, told in [("photo.jpg", "one picture"), (photo(), "one picture"), (5, "int, which is no list of pictures")]:
        with pytest.raises(PictureError, match=f"stream takes pictures one after the other, but got {told}"):
            next(predictor.stream(thing))
    results = predictor.stream(pictures())
    same(next(results), predictor(photo(seed=0)))
    assert taken == [0]
    for result, seed in zip(results, (1, 2), strict=True):
        same(result, predictor(photo(seed=seed)))

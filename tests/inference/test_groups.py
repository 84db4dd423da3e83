import torch

import panoptic_detr as pd
from panoptic_detr.inference.batch import same_size_groups, unpadded_parts
from panoptic_detr.structures import Batch, pad_images


def test_groups_hold_one_size_and_keep_the_order():
    sizes = [(4, 5), (5, 4), (4, 5), (4, 5), (5, 4)]
    assert list(same_size_groups(sizes, 2)) == [[0, 2], [3], [1, 4]]


def test_parts_have_no_padding_and_lose_nothing():
    images = [torch.rand(3, *size) for size in ((4, 6), (5, 3), (4, 6))]
    stacked, padding = pad_images(images)
    sizes = [tuple(image.shape[1:]) for image in images]
    batch = Batch(stacked, padding, sizes=sizes, original_sizes=sizes, image_ids=[7, 8, 9])
    seen = {}
    for indices, part in unpadded_parts(batch):
        assert not part.padding_mask.any()
        for row, index in enumerate(indices):
            assert torch.equal(part.images[row], images[index])
            seen[index] = part.image_ids[row]
    assert seen == {0: 7, 1: 8, 2: 9}


def test_masks_of_a_picture_do_not_depend_on_its_neighbours():
    overrides = {"backbone": "small", "hidden_dim": 32, "num_heads": 4, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    model = pd.build_model("detr_r50_panoptic", num_labels=3, **overrides)
    table = pd.CategoryTable.from_coco([{"id": i, "name": str(i), "isthing": 1} for i in range(1, 4)])
    predictor = pd.Predictor(model, table, batch_size=4)
    pictures = [torch.randint(0, 255, (h, w, 3), dtype=torch.uint8).numpy() for h, w in ((64, 64), (64, 96), (64, 64))]
    together = predictor(pictures, threshold=0.0)
    for picture, result in zip(pictures, together, strict=True):
        alone = predictor(picture, threshold=0.0)
        assert (alone.segment_map != result.segment_map).mean() < 0.001  # rounding may decide single pixels

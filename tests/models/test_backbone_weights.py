import json
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from panoptic_detr.errors import InputError, WeightsUnavailableError
from panoptic_detr.models.backbones import build_backbone
from panoptic_detr.models.backbones.statistics import IMAGENET_MEAN, IMAGENET_STD, InputStatistics
from panoptic_detr.models.backbones.weights import BackboneWeightsError, load_backbone_file

LITE = "tf_efficientnet_lite0"


def test_a_file_of_torchvision_fills_a_resnet(tmp_path):
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("resnet18", norm="batch", pretrained=str(tmp_path / "resnet18.pth"))
    torch.testing.assert_close(backbone.body["layer3"][0].conv1.weight, source.layer3[0].conv1.weight)


@pytest.mark.parametrize("form", ["pth", "safetensors", "nested", "other names"])
def test_a_file_of_timm_fills_its_network_and_leaves_the_classifier(tmp_path, form):
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    source = timm.create_model(LITE)
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"state_dict": state, "epoch": 7}, path)
    else:
        renamed = {f"net_{place}": value for place, value in enumerate(state.values())}
        torch.save(renamed if form == "other names" else state, path)
    backbone = build_backbone(LITE, norm="batch", pretrained=str(path))
    found = backbone.body.net.blocks[3][1].conv_dw.weight
    assert torch.equal(found, source.blocks[3][1].conv_dw.weight)


def test_files_that_do_not_fit_are_one_clear_error(tmp_path):
    net = torchvision.models.resnet18()
    with pytest.raises(BackboneWeightsError, match="there is no weights file"):
        load_backbone_file(net, tmp_path / "absent.pth", "resnet18")
    torch.save(torchvision.models.squeezenet1_0().state_dict(), tmp_path / "other.pth")
    with pytest.raises(BackboneWeightsError, match="does not hold the weights of backbone 'resnet18'"):
        load_backbone_file(net, tmp_path / "other.pth", "resnet18")
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "classes.pth")
    with pytest.raises(BackboneWeightsError, match=r"entry 'fc.weight' has shape \(3, 512\)"):
        load_backbone_file(net, tmp_path / "classes.pth", "resnet18")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(BackboneWeightsError, match="cannot be read as weights"):
        load_backbone_file(net, tmp_path / "text.pth", "resnet18")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BackboneWeightsError, match="is not a state dict"):
        load_backbone_file(net, tmp_path / "list.pth", "resnet18")


def test_other_statistics_are_applied_and_travel_with_the_weights():
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    padding = torch.zeros(2, 4, 4, dtype=torch.bool)
    padding[1, :, 3] = True
    normalised = ((pixels - mean) / std).masked_fill(padding[:, None], 0)
    own = InputStatistics()
    torch.testing.assert_close(own(normalised, padding), normalised)
    own.use((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    wanted = (pixels - 0.5) / torch.tensor([0.5, 0.25, 0.5])[:, None, None]
    torch.testing.assert_close(own(normalised, padding), wanted.masked_fill(padding[:, None], 0), atol=1e-5, rtol=1e-5)
    again = InputStatistics()
    again.load_state_dict(own.state_dict())
    assert torch.equal(again.scale, own.scale)
    again.load_state_dict({})  # weights from before there were statistics: ImageNet's
    assert again.scale.tolist() == [1.0] * 3


def test_a_network_with_other_statistics_than_imagenet_has_them():
    pytest.importorskip("timm")
    assert build_backbone(LITE).statistics is not None
    assert build_backbone("resnext50_32x4d").statistics is None
    assert build_backbone("resnet18").statistics is None


def test_norms_of_timm_are_applied_in_convolutions_in_training_with_the_same_result():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(LITE, norm="frozen", levels=(0, 1, 2, 3, 4), trained_stages=3)
    for name, buffer in backbone.named_buffers():
        if name.endswith(("running_mean", "bias")):
            torch.nn.init.normal_(buffer, std=0.1)
    images, mask = torch.randn(1, 3, 65, 96), torch.zeros(1, 65, 96, dtype=torch.bool)
    with torch.no_grad():
        plain = [level.features for level in backbone.eval()(images, mask)]
    folded = [level.features for level in backbone.train()(images, mask)]
    for first, second in zip(plain, folded, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)
    assert [level.requires_grad for level in folded] == [False, False, True, True, True]
    assert not backbone.body.net.conv_stem.weight.requires_grad


def publish(folder, mean):
    """What a repository of the hub would give, as one commit in the library's cache."""
    folder = folder / "snapshots" / "0123"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    source = torchvision.models.resnet18()
    save_file(source.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": mean, "std": IMAGENET_STD}}))
    return source


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_a_name_of_the_hub_is_fetched(prefix, tmp_path, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []
    source = publish(tmp_path, IMAGENET_MEAN)
    cached = tmp_path / "snapshots" / "0123"
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, revision: (asked.append((repo, file)), cached / file)[1])
    backbone = build_backbone("resnet18", pretrained=f"{prefix}timm/resnet18.a1_in1k")
    assert torch.equal(backbone.body["layer3"][0].conv1.weight, source.layer3[0].conv1.weight)
    assert asked == [("timm/resnet18.a1_in1k", "config.json"), ("timm/resnet18.a1_in1k", "model.safetensors")]
    publish(tmp_path, (0.5, 0.5, 0.5))
    with pytest.raises(BackboneWeightsError, match=r"mean \[0\.5, 0\.5, 0\.5\].*backbone 'resnet18' gets \[0\.485"):
        build_backbone("resnet18", pretrained="timm/resnet18.a1_in1k")


def test_a_name_of_the_hub_without_network_is_one_sentence(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(repo, file, revision):
        raise hub.errors.LocalEntryNotFoundError("offline mode is enabled")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(
        WeightsUnavailableError, match=r"no file 'timm/resnet18'.*HF_HUB_OFFLINE is set.*hf download timm/resnet18"
    ):
        build_backbone("resnet18", pretrained="timm/resnet18")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        InputError, match=r"'timm/resnet18' is a repository.*needs its library: pip install 'panoptic-detr\[hub\]'"
    ):
        build_backbone("resnet18", pretrained="timm/resnet18")


def test_statistics_of_the_hub_travel_with_a_network_that_has_its_own(tmp_path, monkeypatch):
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    publish(tmp_path, (0.4, 0.4, 0.4))
    cached = tmp_path / "snapshots" / "0123"
    save_file(timm.create_model(LITE).state_dict(), cached / "model.safetensors")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, revision: cached / file)
    backbone = build_backbone(LITE, pretrained="someone/lite0")
    wanted = InputStatistics()
    wanted.use((0.4, 0.4, 0.4), IMAGENET_STD)
    torch.testing.assert_close(backbone.statistics.shift, wanted.shift)

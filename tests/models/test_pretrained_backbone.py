"""ImageNet weights of backbones: through the cache; without network one error says what to do."""

from urllib.error import URLError

import pytest
import torch
import torchvision

from panoptic_detr.errors import WeightsUnavailableError
from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.timm import SWIN

FILE = "resnet18-f37072fd.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_cached_weights_are_used(norm, cache):
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, cache / FILE)
    backbone = build_backbone("resnet18", norm=norm, pretrained=True)
    found = {name.removeprefix("body."): value for name, value in backbone.state_dict().items()}
    found = {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}
    assert len(found) == 100
    assert all(torch.equal(value, weights[name]) for name, value in found.items())


def test_without_network_the_file_its_place_and_the_ways_without_it_are_named(cache, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(WeightsUnavailableError) as error:
        build_backbone("resnet18", pretrained=True)
    message = str(error.value)
    assert message.startswith("backbone 'resnet18': its ImageNet weights are not cached and could not be fetched (")
    assert "no route to host" in message
    assert f"download https://download.pytorch.org/models/{FILE} elsewhere and put it at {cache / FILE}" in message
    assert "pretrained_backbone=false with backbone_norm=batch" in message


def test_swin_l_starts_from_weights_that_were_not_fine_tuned():
    timm = pytest.importorskip("timm")
    known = {name: timm.get_pretrained_cfg(SWIN[name]).tag for name in ("swin_t", "swin_l")}
    assert known == {"swin_t": "ms_in1k", "swin_l": "ms_in22k"}


@pytest.mark.parametrize(
    ("name", "timm_name"), [("swin_t", "swin_tiny_patch4_window7_224"), ("resnext50_32x4d", "resnext50_32x4d")]
)
def test_timm_without_network(name, timm_name, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def offline(*arguments, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("offline")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsUnavailableError, match=r"could not be fetched \(offline\); run timm\.create_model") as error:
        build_backbone(name, pretrained=True)
    assert f"timm.create_model({timm_name!r}, pretrained=True)" in str(error.value)
    assert "pretrained_backbone=false" in str(error.value)

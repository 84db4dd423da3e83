"""Files that several tests read are exported once."""

import pytest
from exported.tiny_models import SETTINGS, TABLE, lively
from torch import nn

import panoptic_detr as pd
from panoptic_detr.exported import parts, write
from panoptic_detr.exported.parity import default_pictures
from panoptic_detr.models import tracing


@pytest.fixture(scope="module", autouse=True)
def one_drawn_picture():
    """Compare on one of the three, which saves seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "default_pictures", lambda short_side: default_pictures(short_side)[:1])
        yield


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Models of the same weights are recorded once, which saves half a minute."""
    made, trace = {}, parts.trace_parts

    def remembered(model: nn.Module) -> tuple[object, object]:
        weights = tuple((name, float(value.sum())) for name, value in model.state_dict().items())
        key = weights, tracing.keeps_sampling_whole()
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

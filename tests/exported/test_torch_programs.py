"""Programs of torch.export run without this package, and are run by it."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from exported.tiny_models import SETTINGS, TABLE, lively, pictures
from torch import nn

import panoptic_detr as pd
from panoptic_detr.data.transforms import target_size
from panoptic_detr.errors import InputError
from panoptic_detr.exported import write
from panoptic_detr.exported.engines import NOTES
from panoptic_detr.exported.runtime import REASONS, RESULTS
from panoptic_detr.exported.runtime import SETTINGS as SETTINGS_OF_FILES
from panoptic_detr.exported.write import TYPES


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


def test_a_program_of_pytorch_is_written_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("program", "parts"):
        monkeypatch.delitem(sys.modules, f"panoptic_detr.exported.{name}", raising=False)
    assert import_module("panoptic_detr.exported.program").PER_QUERY == 4

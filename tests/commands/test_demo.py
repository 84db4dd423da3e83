"""The demo's output folder: what a demo made is replaced, everything else stays."""

import signal
from pathlib import Path

import pytest

from panoptic_detr.commands import demo
from panoptic_detr.config.reading import packaged_configs
from panoptic_detr.errors import DataError, TrainingError


def test_only_the_products_of_an_earlier_demo_are_removed(tmp_path):
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").touch()
    demo.prepare_folder(out)
    (out / "masks").mkdir()
    (out / "masks" / "best.pt").touch()
    (out / "report.html").touch()
    (out / "scores").symlink_to(elsewhere)
    (out / "notes.txt").write_text("mine")
    (out / "mine").mkdir()
    (out / "mine" / "photo.jpg").touch()
    demo.prepare_folder(out)
    assert sorted(path.name for path in out.iterdir()) == [demo.MARK, "mine", "notes.txt"]
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "mine" / "photo.jpg").exists()
    assert (elsewhere / "kept.txt").exists()


def test_the_settings_of_both_stages_are_found_in_a_checkout_too():
    assert all(packaged_configs()[f"scenes/{name}"].is_file() for name in ("detector", "masks"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(DataError, match="is not empty and not made by an earlier demo"):
        demo.prepare_folder(tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_everything_that_the_demo_makes_is_one_of_its_products(tmp_path, monkeypatch):
    made = set()

    def record(argv):
        words = [Path(word) for word in argv]
        named = [words[i + 1] for i, word in enumerate(argv[:-1]) if word == "--output"]
        made.update(path.relative_to(tmp_path).parts[0] for path in named or words[1:2])
        for path in named:
            path.mkdir(exist_ok=True)
            (path / "best.pt").touch()

    def record_stage(stage):
        made.add(stage.train.output.name)
        return stage.train.output / "best.pt"

    for job in ("data", "evaluate", "visualize"):
        monkeypatch.setattr(getattr(demo, job), "main", record)
    for stage in ("train_detector", "train_masks"):
        monkeypatch.setattr(demo, stage, record_stage)
    monkeypatch.setattr(demo, "draw_overview", lambda folder, path: made.add(path.name))
    assert demo.main(["--output", str(tmp_path)]) == 0
    assert made == set(demo.PRODUCTS)


def test_a_stopped_stage_ends_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.data, "main", lambda argv: 0)
    monkeypatch.setattr(demo, "train_detector", lambda stage: None)  # though a signal in its last step leaves a best.pt
    (tmp_path / "demo" / "detector").mkdir(parents=True)
    (tmp_path / "demo" / demo.MARK).touch()
    (tmp_path / "demo" / "detector" / "best.pt").touch()
    monkeypatch.setattr(demo, "train_masks", lambda stage: pytest.fail("stage 2 began"))
    with pytest.raises(TrainingError, match="the demo was stopped; it begins anew when it is run again"):
        demo.main(["--output", str(tmp_path / "demo")])


@pytest.mark.parametrize("job", ["data", "evaluate", "visualize"])
def test_a_signal_between_the_stages_ends_the_demo_in_a_sentence(tmp_path, monkeypatch, job):
    for other in ("data", "evaluate", "visualize"):
        monkeypatch.setattr(getattr(demo, other), "main", lambda argv: None)
    monkeypatch.setattr(demo, "train", lambda *_: "best.pt")
    monkeypatch.setattr(getattr(demo, job), "main", lambda argv: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingError, match="stopped by SIGTERM; it begins anew when the same command is run again"):
        demo.main(["--output", str(tmp_path / "demo")])

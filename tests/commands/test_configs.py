"""`panoptic-detr configs`: every packaged YAML by the name that `--config` takes, with what it is for."""

from pathlib import Path

from panoptic_detr.commands import configs
from panoptic_detr.config.reading import packaged_configs

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_is_listed_with_its_first_line(capsys):
    assert configs.main([]) == 0
    lines = [line.partition("  ") for line in capsys.readouterr().out.splitlines()]
    names = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
    assert [name for name, _, _ in lines] == names == list(packaged_configs())
    assert all(len(text.strip()) > 20 for _, _, text in lines)
    assert any(name == "scenes/masks" and text.strip().startswith("Stage 2") for name, _, text in lines)

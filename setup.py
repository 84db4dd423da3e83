"""Packaging: the package, and `tools/` and `configs/` inside it as `panoptic_detr.tools` and `panoptic_detr.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["panoptic_detr*"]), "panoptic_detr.tools", "panoptic_detr.configs"],
    package_dir={"panoptic_detr.tools": "tools", "panoptic_detr.configs": "configs"},
    package_data={"panoptic_detr": ["py.typed", "**/*.jinja"], "panoptic_detr.configs": ["**/*.yaml"]},
)

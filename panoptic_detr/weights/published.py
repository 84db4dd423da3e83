"""Who publishes which weights, and how they are fetched."""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from panoptic_detr.errors import InputError, WeightsUnavailableError
from panoptic_detr.models.backbones import HubId, finder
from panoptic_detr.weights.checkpoints import Checkpoint
from panoptic_detr.weights.hub import read_files
from panoptic_detr.weights.names import official_weights
from panoptic_detr.zoo import build_model, check_name, spec_of

DETR_FILES = "https://dl.fbaipublicfiles.com/detr/"
DRIVE = "https://drive.google.com/file/d/"
H_DETR_FILES = "https://github.com/HDETR/H-Deformable-DETR/releases/download/v0.1/"
H_DETR_NAME = (
    "hybrid_branch_lambda1_group6_t1500_dp0_mqs_lft_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage"
)


@dataclass(frozen=True)
class Published:
    """Weights that the authors of a model publish.

    Attributes:
        source: address of the file, or of the page where a person can download it.
        direct: `source` is the file itself, so that it can be fetched.
        scores: what the authors report on COCO val2017, in percent.
        page_file: name of the file that the page gives, where `source` is not the file itself.
        hub: repository of the Hugging Face hub with the same weights: asked first where `source` is a page, second otherwise.
    """

    source: str
    direct: bool
    scores: dict[str, float]
    page_file: str = ""
    hub: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file, under which it lies in the cache."""
        return self.source.rsplit("/", 1)[-1] if self.direct else self.page_file


PUBLISHED: dict[str, Published] = {
    "detr_r50": Published(DETR_FILES + "detr-r50-e632da11.pth", True, {"AP": 42.0}, hub="facebook/detr-resnet-50"),
    "detr_r50_dc5": Published(DETR_FILES + "detr-r50-dc5-f0fb7ef5.pth", True, {"AP": 43.3}, hub="facebook/detr-resnet-50-dc5"),
    "detr_r101": Published(DETR_FILES + "detr-r101-2c7b67e5.pth", True, {"AP": 43.5}, hub="facebook/detr-resnet-101"),
    "detr_r101_dc5": Published(
        DETR_FILES + "detr-r101-dc5-a2e86def.pth", True, {"AP": 44.9}, hub="facebook/detr-resnet-101-dc5"
    ),
    "detr_r50_panoptic": Published(
        DETR_FILES + "detr-r50-panoptic-00ce5173.pth",
        True,
        {"PQ": 43.4, "SQ": 79.3, "RQ": 53.8, "PQth": 48.2, "PQst": 36.3},
        hub="facebook/detr-resnet-50-panoptic",
    ),
    "detr_r50_dc5_panoptic": Published(
        DETR_FILES + "detr-r50-dc5-panoptic-da08f1b1.pth",
        True,
        {"PQ": 44.6, "SQ": 79.8, "RQ": 55.0, "PQth": 49.4, "PQst": 37.3},
        hub="facebook/detr-resnet-50-dc5-panoptic",
    ),
    "detr_r101_panoptic": Published(
        DETR_FILES + "detr-r101-panoptic-40021d53.pth",
        True,
        {"PQ": 45.1, "SQ": 79.9, "RQ": 55.5, "PQth": 50.5, "PQst": 37.0},
        hub="facebook/detr-resnet-101-panoptic",
    ),
    # Deformable DETR: the authors link to Google Drive, which asks a browser before it hands out large files.
    "deformable_detr_r50": Published(
        DRIVE + "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA/view",
        False,
        {"AP": 44.5},
        "r50_deformable_detr-checkpoint.pth",
        hub="SenseTime/deformable-detr",
    ),
    "deformable_detr_r50_refine": Published(
        DRIVE + "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI/view",
        False,
        {"AP": 46.2},
        "r50_deformable_detr_plus_iterative_bbox_refinement-checkpoint.pth",
        hub="SenseTime/deformable-detr-with-box-refine",
    ),
    "deformable_detr_r50_two_stage": Published(
        DRIVE + "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp/view",
        False,
        {"AP": 46.9},
        "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage-checkpoint.pth",
        hub="SenseTime/deformable-detr-with-box-refine-two-stage",
    ),
    "deformable_detr_r50_single_scale": Published(
        DRIVE + "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU/view",
        False,
        {"AP": 39.4},
        "r50_deformable_detr_single_scale-checkpoint.pth",
        hub="SenseTime/deformable-detr-single-scale",
    ),
    "deformable_detr_r50_single_scale_dc5": Published(
        DRIVE + "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk/view",
        False,
        {"AP": 41.5},
        "r50_deformable_detr_single_scale_dc5-checkpoint.pth",
        hub="SenseTime/deformable-detr-single-scale-dc5",
    ),
    # H-DETR: 300 queries, 36 epochs. The releases have 12 epochs and 900 queries too (docs/detectors.md).
    "h_deformable_detr_r50": Published(f"{H_DETR_FILES}r50_{H_DETR_NAME}_36eps.pth", True, {"AP": 50.0}),
    "h_deformable_detr_swin_t": Published(f"{H_DETR_FILES}swin_tiny_{H_DETR_NAME}_36eps.pth", True, {"AP": 53.2}),
    "h_deformable_detr_swin_l": Published(f"{H_DETR_FILES}drop_path0.5_swin_large_{H_DETR_NAME}_36eps.pth", True, {"AP": 57.1}),
}


def load_published(name: str) -> Checkpoint:
    """The weights that the authors of a model publish, under our names, through the caches of torch.hub and huggingface_hub.

    Files are opened with `weights_only=True`, and the hash of a file is compared with the one in its name if there is one.

    Raises:
        InputError: nobody publishes weights for this model.
        WeightsUnavailableError: nothing is in the caches, and nothing can be fetched; the message says which file to put where.
    """
    check_name(name)
    if name not in PUBLISHED:
        raise InputError(f"no weights are published for {name!r}; those with weights: {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    file_first = published.direct or _cached(published).is_file() or not published.hub
    ways = (_from_file, _from_hub) if file_first else (_from_hub, _from_file)
    problems = {}
    for way in ways[: 1 + bool(published.hub)]:
        try:
            return way(name, published)
        except WeightsUnavailableError as error:
            problems[way] = str(error)
    raise WeightsUnavailableError(". ".join(problems[way] for way in (_from_file, _from_hub) if way in problems))


def _from_file(name: str, published: Published) -> Checkpoint:
    """The authors' own file."""
    with torch.device("meta"):
        skeleton = build_model(name)
    return Checkpoint(spec_of(skeleton), official_weights(skeleton, _fetch(name, published)))


def _from_hub(name: str, published: Published) -> Checkpoint:
    """The same weights from the hub."""
    try:
        return read_files(finder(HubId(published.hub, None)), published.hub)
    except (InputError, WeightsUnavailableError) as error:
        raise WeightsUnavailableError(f"Its copy on the hub does not come either: {error}") from None


def _cached(published: Published) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / published.file_name


def _fetch(name: str, published: Published) -> Mapping[str, object]:
    path = _cached(published)
    place = f"download {published.source} with a browser and put it at {path}"
    try:
        # The files of the deformable detectors also hold the options of their training.
        with torch.serialization.safe_globals([argparse.Namespace]):
            if not published.direct:
                return torch.load(path, map_location="cpu", weights_only=True)
            return torch.hub.load_state_dict_from_url(
                published.source,
                model_dir=str(path.parent),
                map_location="cpu",
                check_hash=True,
                weights_only=True,
                progress=False,
            )
    except OSError as error:
        reason = (
            f" and could not be fetched ({error})" if published.direct else "; its authors publish it on a page for browsers"
        )
        raise WeightsUnavailableError(
            f"{name}: {path.name} is not cached{reason}; {place}, or bring the file into this project from wherever it lies: "
            f"panoptic-detr convert_checkpoint FILE {name}.pth --model {name}"
        ) from None
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsUnavailableError(f"{name}: the downloaded {path.name} is damaged ({error}); {place}") from None

"""Repositories of the Hugging Face hub, of backbones and of whole models: fetched and filled by its own library.

Its cache, tokens and settings (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN) hold.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from panoptic_detr.errors import InputError, WeightsUnavailableError

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}")  # of a repository to push to
_FILES = (".pt", ".pth", ".bin", ".json", ".yaml", ".onnx", ".zip", ".xml", ".safetensors")  # endings of files, not of names
RUNS = "runs"  # where training writes; nobody of the hub is called so, and a mistyped run is not looked for there
CLIENTS = ("httpx", "requests")  # through which the library asks; their errors come as they are where there is no answer
Result = TypeVar("Result")


class HubId(NamedTuple):
    """A repository, `organisation/name`, and the branch, tag or commit of it; None for its main branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        """As it was given."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_id(source: str) -> HubId | None:
    """Read `organisation/name` or `organisation/name@revision`; None where the source is a path, or looks like one."""
    match = _ID.fullmatch(source)
    path = Path(source)
    if not match or path.suffix in _FILES or path.exists() or path.parent.is_dir() or path.parts[0] == RUNS:
        return None
    return HubId(match["repo"], match["revision"])


def check_repository(repo_id: object) -> None:
    """Raise `InputError` unless the hub can have a repository of this id."""
    if not isinstance(repo_id, str) or not _NAME.fullmatch(repo_id):
        raise InputError(
            f"repo_id must be the id of a repository of the hub, 'organisation/name' of letters, digits, '-', '_' and '.', but "
            f"got {repo_id!r}"
        )


def finder(repository: HubId) -> Callable[[str], Path | None]:
    """What fetches a file of a repository into the library's cache, all files from one commit; None where it has no such file.

    Raises (when called):
        WeightsUnavailableError: no such repository or revision, or neither cached nor to be had from the network.
        InputError: huggingface_hub is not installed.
    """
    hub = _library(f"{str(repository)!r} is a repository of the Hugging Face hub")
    commit = repository.revision

    def find(name: str) -> Path | None:
        """A file of the repository, None if it has none of that name."""
        nonlocal commit
        try:
            path = Path(_asked(hub, repository, lambda: hub.hf_hub_download(repository.repo, name, revision=commit)))
        except hub.errors.LocalEntryNotFoundError:
            if commit == repository.revision:  # nothing is there yet
                why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "the hub cannot be reached"
                raise WeightsUnavailableError(
                    f"{repository}: not in the cache ({hub.constants.HF_HUB_CACHE}), and {why}; fetch it on a machine with a "
                    f"network (hf download {repository.repo}) and copy the cache, or name a folder with its files. If this is "
                    "meant to be a path here: there is no such file"
                ) from None
            return None
        except hub.errors.EntryNotFoundError:
            return None
        commit = path.relative_to(_snapshots(path)).parts[0]
        return path

    return find


def push_folder(folder: Path, repo_id: str, *, private: bool | None, revision: str | None, message: str) -> str:
    """Make a repository if there is none, and commit all files of a folder to it; returns its address.

    Raises:
        WeightsUnavailableError: not allowed (no token, or one that may not write), or not reachable.
        InputError: huggingface_hub is not installed, or the id is none.
    """
    hub = _library("to push a model")
    repository = HubId(repo_id, revision)

    def push() -> str:
        api = hub.HfApi()
        made = str(api.create_repo(repo_id, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
        return made

    return _asked(hub, repository, push)


def _asked(hub: ModuleType, repository: HubId, ask: Callable[[], Result]) -> Result:
    """What the library answers; its errors in a sentence, but for files that are missing."""
    errors = hub.errors
    try:
        return ask()
    except errors.EntryNotFoundError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{repository.repo!r} is no id of a repository: {_first_line(error)}") from None
    except errors.GatedRepoError:
        raise WeightsUnavailableError(
            f"{repository}: its owners ask for consent; accept it at {hub.constants.ENDPOINT}/{repository.repo}, then `hf auth "
            "login` or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsUnavailableError(
            f"{repository}: there is no such repository on {hub.constants.ENDPOINT}, or it is private: `hf auth login` or set "
            "HF_TOKEN to one that may use it"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsUnavailableError(
            f"{repository}: the repository has no branch, tag or commit {repository.revision!r}; leave @... out for the main "
            "branch"
        ) from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise WeightsUnavailableError(f"{repository}: the hub answers: {_first_line(error)}") from None
    except Exception as error:
        if not type(error).__module__.startswith(CLIENTS):
            raise
        raise WeightsUnavailableError(f"{repository}: {hub.constants.ENDPOINT} does not answer: {_first_line(error)}") from None


def _library(wanted_for: str) -> ModuleType:
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise InputError(f"{wanted_for}, which needs its library: pip install 'panoptic-detr[hub]'") from None


def _snapshots(path: Path) -> Path:
    """The folder of a repository's commits in the cache that a cached file lies in."""
    return next(parent for parent in path.parents if parent.name == "snapshots")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

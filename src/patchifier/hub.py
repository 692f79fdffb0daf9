"""Download of model folders from the Hugging Face hub by names such as "hf://owner/name".

Only names with this prefix are downloaded. It needs the package huggingface_hub.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.extras import need
from patchifier.io import parse_json, read_text

PREFIX = "hf://"
# Path("hf://a/b") has one slash.
NAME = re.compile(r"(hf://?)?(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
REQUIRED = ("config.json", "model.safetensors")
OPTIONAL = ("graph.onnx", "reconstruct.onnx", "README.md", "preprocessor_config.json")
FILES = REQUIRED + OPTIONAL  # what is downloaded


def is_name(path: str | Path) -> bool:
    """Whether `path` names a model on the hub."""
    return str(path).startswith("hf:/")


def from_hub(
    name: str,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Download a model folder to the hub's cache, or find it there without a network.

    `name` is "owner/name" or "owner/name@revision", with or without "hf://". Options are those of
    huggingface_hub, whose cache and access token are the defaults.

    Raises
    ------
    RequestError
        If the name is not valid, there is no network, no such repository or revision, or the
        repository does not hold a model of this package.

    Examples
    --------
    >>> folder = from_hub("owner/name@v1")
    >>> model = patchifier.load(folder)
    """
    match = NAME.fullmatch(str(name))
    if not match:
        raise RequestError(
            f"{str(name)!r} is not the name of a model on a hub, "
            "expected owner/name or owner/name@revision."
        )
    options = {"cache_dir": cache_dir, "token": token}
    options |= {"local_files_only": local_files_only, "force_download": force_download}
    found = _download(match, match["revision"], REQUIRED[:1], options)
    _require_model(found, match["repository"])  # before large files are downloaded
    # a snapshot's folder is named by its commit
    folder = _download(match, found.name, FILES, options)
    missing = [file for file in REQUIRED if not (folder / file).is_file()]
    if missing:
        raise RequestError(
            f"{match['repository']!r} has no {' and no '.join(missing)}, expected a model folder: "
            "push it again, or name another."
        )
    return folder


def _download(
    match: re.Match[str], revision: str | None, files: tuple[str, ...], options: Mapping[str, Any]
) -> Path:
    name = match["repository"]
    hub, errors = need("huggingface_hub"), need("huggingface_hub.errors")
    try:
        return Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=list(files), **options)
        )
    except errors.GatedRepoError as error:
        raise RequestError(
            f"{name!r} is on the hub for those alone who were let in: ask there, then sign in "
            "with 'hf auth login'."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RequestError(
            f"the hub has no model {name!r} that you may see: check the name; if it is private, "
            "sign in with 'hf auth login'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RequestError(
            f"{name!r} has no revision {match['revision']!r}: name one of its branches, tags or "
            "commits."
        ) from error
    except Exception as error:  # network errors; their classes differ between versions of the hub
        reason = str(error).strip().split("\n")[0]
        raise RequestError(
            f"the hub does not give {name!r} ({reason}). Check the name and the network, or "
            "download the folder by hand."
        ) from error


def _require_model(folder: Path, name: str) -> None:
    """Refuse a folder that holds no model of this package; a message calls it by `name`."""
    try:
        ours = "checkpoint" in parse_json(read_text(folder / "config.json"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise RequestError(
            f"{name!r} is no model of this package, expected a model folder as training writes "
            "it: a repository with its config.json."
        )

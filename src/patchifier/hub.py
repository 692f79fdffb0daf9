"""A model folder by its name on a hub: what "hf://owner/name" means wherever a model folder is asked for.

Nothing is downloaded but what is named so. huggingface_hub is needed for it, and for nothing else.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.extras import need

PREFIX = "hf://"
# A Path makes one slash of two.
NAME = re.compile(r"(hf://?)?(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FILES = ("config.json", "model.safetensors", "README.md", "preprocessor_config.json")
REQUIRED = FILES[:2]


def is_name(path: str | Path) -> bool:
    """Whether a hub is meant, and no folder."""
    return str(path).startswith("hf:/")


def from_hub(
    name: str,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Download a model folder, unless it is in the cache already. What is in the cache needs no network.

    Parameters
    ----------
    name : str
        "owner/name", or "owner/name@revision", with or without "hf://".
    cache_dir : str or Path
        Where downloads are kept; the hub's own place by default.
    token : str or bool
        For repositories that are not public.
    local_files_only : bool
        Whether to look in the cache alone.
    force_download : bool
        Whether to download what is in the cache as well.

    Returns
    -------
    Path
        A folder for :func:`patchifier.load`.

    Raises
    ------
    RequestError
        If the name is none, there is no network, no such repository or revision, or no model of this package in it.
    """
    match = NAME.fullmatch(str(name))
    if not match:
        raise RequestError(
            f"{str(name)!r} is not the name of a model on a hub, expected owner/name or owner/name@revision."
        )
    how = {
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    found = _download(match, match["revision"], REQUIRED[:1], how)
    _require_ours(found, match["repository"])  # before somebody else's gigabytes arrive
    folder = _download(match, found.name, FILES, how)  # a snapshot's folder is named by its commit
    missing = [file for file in REQUIRED if not (folder / file).is_file()]
    if missing:
        raise RequestError(
            f"{match['repository']!r} has no {' and no '.join(missing)}, expected a model folder: push it again, or name another."
        )
    return folder


def _download(
    match: re.Match[str], revision: str | None, files: tuple[str, ...], how: Mapping[str, Any]
) -> Path:
    name = match["repository"]
    hub, errors = need("huggingface_hub"), need("huggingface_hub.errors")
    try:
        return Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=list(files), **how)
        )
    except errors.GatedRepoError as error:
        raise RequestError(
            f"{name!r} is on the hub for those alone who were let in: ask there, then sign in with 'hf auth login'."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RequestError(
            f"the hub has no model {name!r} that you may see: check the name; if it is private, sign in with 'hf auth login'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RequestError(
            f"{name!r} has no revision {match['revision']!r}: name one of its branches, tags or commits."
        ) from error
    except (
        Exception
    ) as error:  # of the network: each version of the hub's package has other classes for them
        reason = str(error).strip().split("\n")[0]
        raise RequestError(
            f"the hub does not give {name!r} ({reason}). Check the name and the network, or download the folder by hand."
        ) from error


def _require_ours(folder: Path, name: str) -> None:
    try:
        ours = "checkpoint" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise RequestError(
            f"{name!r} is no model of this package, expected a model folder as training writes it: a repository with its config.json."
        )

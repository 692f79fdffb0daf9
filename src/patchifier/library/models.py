"""Which model of the package made vectors, by the identity that a table states."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from patchifier import model_folder, weights
from patchifier.config import RequestError

if TYPE_CHECKING:
    from patchifier.embed import Embedder

OF_PATCHES = " of patches"  # behind the identity of a table with a row for each patch


def name_of(identity: str) -> str | None:
    """Name of the model of this package that has an identity; None if none has."""
    plain = identity.removesuffix(OF_PATCHES)
    if not re.fullmatch("[0-9a-f]{16}", plain):
        return None
    return next((name for name in weights.names() if _identity(name) == plain), None)


def _identity(name: str) -> str | None:
    """Identity of a model of this package, or None of a damaged copy."""
    folder = weights.ROOT / name
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stated = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _identity_of(folder, stated)


@functools.lru_cache(maxsize=32)
def _identity_of(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str | None:
    """Identity of a model folder whose files are these."""
    from patchifier import embed

    try:
        return embed.load(folder).identity
    except RequestError:
        return None


def made_by(identity: str, model: str = "") -> "tuple[str, Embedder] | None":
    """Name of a model, and itself, that has an identity: of the package, or a given one alone."""
    from patchifier import embed

    for name in [model] if model else weights.names():
        loaded = embed.load(name)
        if loaded.identity == identity:
            return name, loaded
    return None


def older_name_of(identity: str) -> str | None:
    """Name of a model of an older version of the package that has an identity, or None."""
    return None if name_of(identity) else weights.older().get(identity.removesuffix(OF_PATCHES))


def names_of_size(size: int) -> list[str]:
    """Names of the models of this package whose vectors have so many numbers."""
    found = {name: model_folder.read(name).config for name in weights.names()}
    return [name for name, config in found.items() if config.embedding_size == size]


def called(identity: str) -> str:
    """Call a model in messages: by its name if it is one of the package, or by its identity."""
    ending = OF_PATCHES if identity.endswith(OF_PATCHES) else ""
    if name := name_of(identity):
        return f"{name}{ending}"
    if older := older_name_of(identity):
        return f"the {older} of another version{ending}"
    return identity


def how_to_match(identity: str, table: object) -> str:
    """Say what to do so that a command uses the model that made a table."""
    if name := name_of(identity):
        return f"The table was made by {name}: add --model {name}."
    if older := older_name_of(identity):
        return (
            f"{table} was made by the {older} of another version of patchifier: make a new table, "
            "with 'patchifier embed SOURCES --out NEW.parquet'."
        )
    return (
        "The table was made by a model that is not of this package: name its folder with --model. "
        "If it was made by a model of an older patchifier, make a new table, with 'patchifier "
        "embed SOURCES --out NEW.parquet'."
    )

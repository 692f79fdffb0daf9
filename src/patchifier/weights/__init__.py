"""Models of the package, one folder each: weights in half precision, config, model card.

``heads/`` holds heads on vectors of the default model, one folder each.

Every function that takes a model accepts such a name; the default is :data:`DEFAULT`.
"""

import difflib
import json
import logging
import os
from pathlib import Path

from patchifier import hub
from patchifier.config import RequestError
from patchifier.io import expanded, restore_folder

ROOT = Path(__file__).parent
OLDER = "older.json"
DEFAULT = "patchifier-base"
PAPER = "patchifier-paper"  # the paper's recipe, which also reconstructs masked patches
logger = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """Names of the models of the package, the default first.

    Examples
    --------
    >>> names()
    ('patchifier-base', 'patchifier-paper')
    """
    return tuple(
        sorted(
            (path.parent.name for path in ROOT.glob("*/config.json")),
            key=lambda name: (name != DEFAULT, name),
        )
    )


def find(model: str | Path | None = None) -> Path:
    """Find the folder of a model.

    Parameters
    ----------
    model : str or Path
        One of :func:`names` (by default :data:`DEFAULT`), "hf://owner/name" or
        "hf://owner/name@revision", or a path, in this order. If the working directory has a folder
        of that name, a warning is logged; "./NAME" or a Path selects that folder.

    Returns
    -------
    Path
        Only names that begin with "hf://" are downloaded. A folder that a killed process moved
        aside is put back.

    Raises
    ------
    RequestError
        If there is no such model, or as :func:`patchifier.hub.from_hub`. The content of a path is
        not checked.
    """
    if model is None or (isinstance(model, str) and model in {DEFAULT, PAPER, *names()}):
        return _bundled(model or DEFAULT)
    if hub.is_name(model):
        return hub.from_hub(str(model))
    model = expanded(model)
    restore_folder(Path(model))
    if isinstance(model, str) and model == Path(model).name and not os.path.exists(model):
        raise RequestError(f"there is no model {model!r}{_nearest(model)} Expected {expected()}.")
    return Path(model)


def title(model: str | Path) -> str:
    """Call a model in tables: by its name, by its folder, or, for RUN/model, by the run.

    Examples
    --------
    >>> title("patchifier-base"), title("runs/mine/model"), title("models/mine")
    ('patchifier-base', 'mine', 'mine')
    """
    if isinstance(model, str) and (model in names() or hub.is_name(model)):
        return model
    path = Path(os.path.abspath(expanded(model)))
    return (path.parent if path.name == "model" else path).name or str(model)


def heads() -> tuple[str, ...]:
    """Names of the heads of the package.

    Examples
    --------
    >>> heads()
    ('chord-quality', 'drums')
    """
    return tuple(sorted(path.parent.name for path in ROOT.glob("heads/*/head.json")))


def find_head(name: str | Path | None) -> Path | None:
    """Folder of a head of the package; None if the package has none of this name.

    If the working directory has a folder of that name, a warning is logged.
    """
    if not isinstance(name, str) or name not in heads():
        return None
    _warn_of_folder(name, "head")
    return ROOT / "heads" / name


def older() -> dict[str, str]:
    """Names of models of older versions by their identities, which tables and heads state.

    ``benchmarks/open/release.py`` adds what it replaces.

    Examples
    --------
    >>> older()["ed9130f9869c647e"]
    'patchifier-paper'
    """
    path = ROOT / OLDER
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def expected() -> str:
    """Describe the names of models, for messages."""
    bundled = f"one of {', '.join(names())}, which come with the package, " if names() else ""
    return f"{bundled}a model folder such as runs/demo/model, or hf://owner/name"


def _bundled(name: str) -> Path:
    if name not in names():
        raise RequestError(
            f"{name} is missing from this copy of patchifier. Install it again, or name another "
            f"model, by load(...) or --model: {expected()}."
        )
    _warn_of_folder(name, "model")
    return ROOT / name


def _warn_of_folder(name: str, what: str) -> None:
    if Path(name).is_dir():
        hint = "%s is the %s of the package; write ./%s for the folder of that name here."
        logger.warning(hint, name, what, name)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, (*names(), *heads()), n=1)
    return f", did you mean {near[0]!r}?" if near else "."

"""The models that come with the package, a folder each: weights in half precision, config, and a card that says what they heard.

Wherever a model is asked for, the name of such a folder will do, and none means :data:`DEFAULT`.
"""

import difflib
import logging
from pathlib import Path

from patchifier import hub
from patchifier.config import RequestError
from patchifier.io import restore_folder

ROOT = Path(__file__).parent
DEFAULT = "patchifier-base"
PAPER = "patchifier-paper"  # the paper's own recipe: what it was trained to do is to draw hidden patches
logger = logging.getLogger(__name__)


def names() -> tuple[str, ...]:
    """Names of the models in this copy of the package, the default first."""
    return tuple(
        sorted(
            (path.parent.name for path in ROOT.glob("*/config.json")),
            key=lambda name: (name != DEFAULT, name),
        )
    )


def find(model: str | Path | None = None) -> Path:
    """Folder of a model, by whatever names it.

    Parameters
    ----------
    model : str or Path
        In this order: one of :func:`names`, and by default :data:`DEFAULT`; "hf://owner/name" or "hf://owner/name@revision"; a path. So
        a name means the same in every working directory. Where a folder of that name lies in it, a warning says so: "./NAME", or a
        Path, is that folder.

    Returns
    -------
    Path
        Nothing is downloaded but what is named "hf://". A folder that a killed process moved aside is put back.

    Raises
    ------
    RequestError
        If this copy of the package has no such model, or as :func:`patchifier.hub.from_hub` does. Paths are not looked into.
    """
    if model is None or (isinstance(model, str) and model in {DEFAULT, PAPER, *names()}):
        return _bundled(model or DEFAULT)
    if hub.is_name(model):
        return hub.from_hub(str(model))
    restore_folder(Path(model))
    if isinstance(model, str) and model == Path(model).name and not Path(model).exists():
        raise RequestError(f"there is no model {model!r}{_nearest(model)} Expected {expected()}.")
    return Path(model)


def expected() -> str:
    """What names a model, for messages."""
    bundled = f"one of {', '.join(names())}, which come with the package, " if names() else ""
    return f"{bundled}a model folder such as runs/demo/model, or hf://owner/name"


def _bundled(name: str) -> Path:
    if name not in names():
        raise RequestError(
            f"{name} is missing from this copy of patchifier. Install it again, or name another model, by load(...) or --model: {expected()}."
        )
    if Path(name).is_dir():
        logger.warning(
            "%s is the model that comes with the package; write ./%s for the folder of that name here.",
            name,
            name,
        )
    return ROOT / name


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, names(), n=1)
    return f", did you mean {near[0]!r}?" if near else "."

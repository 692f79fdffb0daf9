"""Heads: linear classifiers on the vectors of a model, kept in a folder of their own.

A head is two small files: ``head.json`` (names, the model, its identity) and ``head.safetensors``
(weight and bias). :func:`patchifier.load` opens such a folder as a model that predicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from patchifier.config import RequestError
from patchifier.io import parse_json, read_text, replaced_folder, require_file, write_json

FORMAT = 1
MOST_NAMES, MOST_LETTERS, MOST_SIZE = 1_000, 200, 2**16
JSON, WEIGHTS = "head.json", "head.safetensors"


@dataclass(frozen=True)
class Head:
    """A multinomial logistic regression on vectors of one model, scaled to length 1.

    Attributes
    ----------
    names : tuple of str
        Labels.
    weight : ndarray, shape (C, E), float32
    bias : ndarray, shape (C,), float32
    identity : str
        Of the model and the settings that made the vectors.
    model : str
        Name of a bundled model, or a model folder.
    facts : mapping
        How it was trained, and how well it predicts.

    Examples
    --------
    >>> head = Head(("low", "high"), np.array([[-1.0], [1.0]]), np.zeros(2), "x", "patchifier-base")
    >>> found = head.probabilities(np.array([[3.0], [-0.1]]))
    >>> [head.names[label] for label in found.argmax(axis=1)]
    ['high', 'low']
    """

    names: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    identity: str
    model: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Length E of a vector."""
        return self.weight.shape[1]

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Probabilities (..., C) of the labels of vectors (..., E) of any length, float32."""
        logits = unit(vectors) @ self.weight.T.astype(np.float64) + self.bias
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)

    def save(self, folder: str | Path) -> Path:
        """Write the head into a folder, in place of another head there.

        Raises
        ------
        RequestError
            If the folder holds anything else.
        """
        folder = Path(folder)
        if folder.exists() and not is_head(folder):
            raise RequestError(f"{folder} exists and is not a head: choose another name.")
        values = {"format": FORMAT, "names": list(self.names), "identity": self.identity}
        with replaced_folder(folder) as new:
            tensors = {
                "weight": self.weight.astype(np.float32),
                "bias": self.bias.astype(np.float32),
            }
            save_file(tensors, new / WEIGHTS)
            write_json(new / JSON, values | {"model": self.model, "facts": dict(self.facts)})
        return folder


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., E) of length 1, in double precision; zeros stay zeros."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1.0)


def is_head(path: str | Path | None) -> bool:
    """Whether a path is the folder of a head."""
    return path is not None and (Path(path) / JSON).is_file()


def read(folder: str | Path) -> Head:
    """Read a head.

    Raises
    ------
    RequestError
        If it is damaged, of another format, or its numbers do not fit its names.
    """
    folder = Path(folder)
    try:
        values = parse_json(read_text(folder / JSON))
        if type(values["format"]) is not int:
            raise TypeError(f"its format is {values['format']!r}")
        if values["format"] > FORMAT:
            raise RequestError(
                f"{folder} has format {values['format']}, this version reads up to {FORMAT}: "
                "pip install -U patchifier."
            )
        names = require_names(values["names"])
        if not all(
            isinstance(values[name], str) and values[name] for name in ("identity", "model")
        ):
            raise ValueError("identity and model are not both strings")
        if is_head(values["model"]):
            raise ValueError("its model is a head")
        weight, bias = _tensors(folder / WEIGHTS, len(names))
        facts = dict(values.get("facts") or {})
    except RequestError:
        raise
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RequestError(
            f"{folder} is not a head, or is damaged ({error}): save it again from the page."
        ) from error
    if values["model"].startswith("hf://"):
        raise RequestError(f"{folder} names the model {values['model']}: download it first.")
    return Head(names, weight, bias, values["identity"], values["model"], facts)


def require_names(names: Any) -> tuple[str, ...]:
    """Return the labels of a head: 2 to 1,000 different texts of one line.

    Raises
    ------
    RequestError
        Naming the label that is none.
    """
    if not isinstance(names, list | tuple) or not 2 <= len(names) <= MOST_NAMES:
        raise RequestError("a head has 2 to 1,000 labels, in a list: give as many.")
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MOST_LETTERS:
            raise RequestError(
                f"the label {str(name)[:60]!r} is no text of 1 to {MOST_LETTERS} letters."
            )
        if not name.isprintable():  # nor is half a character
            raise RequestError(f"the label {name!r} holds a character that cannot be printed.")
    if len(set(names)) < len(names):
        raise RequestError("two labels have the same name: name them apart.")
    return tuple(names)


def _tensors(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (count, E) and bias (count,)."""
    require_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if set(shapes) != {"weight", "bias"} or shapes["bias"] != (count,):
            raise ValueError(f"its tensors are {shapes}")
        rows, *size = shapes["weight"]
        if rows != count or len(size) != 1 or not 1 <= size[0] <= MOST_SIZE:
            raise ValueError(f"its weight has shape {shapes['weight']}")
        weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    if weight.dtype != np.float32 or bias.dtype != np.float32:
        raise ValueError("its numbers are not float32")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("it holds NaN or infinity")
    return weight, bias

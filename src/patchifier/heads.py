"""Heads: linear classifiers on the vectors of a model, kept in a folder of their own.

A head is two small files: ``head.json`` (names, the model, its identity) and ``head.safetensors``
(weight and bias). :func:`patchifier.load` opens such a folder as a model that predicts. A head may
also know where the vectors of its training lie, and doubts other sound.
"""

import hashlib
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors
from safetensors.numpy import save_file

from patchifier.config import RequestError
from patchifier.head_files import JSON, MOST_TEXT, WEIGHTS, is_head, require_replaceable, unpacked
from patchifier.io import (
    parse_json,
    read_text,
    replaced_folder,
    require_file,
    restore_folder,
    write_json,
)

FORMAT = 2  # 1: a label of several, without `known`
MOST_NAMES, MOST_LETTERS, MOST_SIZE = 1_000, 200, 2**16
MOST_DEEP = 20  # lists and dicts of facts in each other
KNOWN, LIMITS = ("mean", "scale", "music"), ("furthest", "beyond", "least")
UNREADABLE = (OSError, AttributeError, KeyError, OverflowError, TypeError, ValueError)
Kind = Literal["one-of", "many-of"]


@dataclass(frozen=True)
class Known:
    """Where the vectors of a head's training lie.

    Attributes
    ----------
    mean, scale : ndarray, shape (E,), float32
        Mean and reciprocal deviation of training vectors of length 1.
    music : ndarray, shape (E,), float32
        Direction in which music lies beyond noise and speech-like sound.
    furthest : float
        Largest distance at which the head answers: root mean square over E.
    beyond : float
        Least product of a vector of length 1 with `music` at which the head answers.
    least : float
        Least probability of a label at which a "one-of" head answers.
    """

    mean: np.ndarray
    scale: np.ndarray
    music: np.ndarray
    furthest: float
    beyond: float
    least: float = 0.0

    def near(self, vectors: np.ndarray) -> np.ndarray:
        """Whether vectors (..., E) are like those of the training, and unlike noise."""
        beyond = unit(vectors) @ self.music.astype(np.float64) >= self.beyond
        return beyond & (self.distance(vectors) <= self.furthest)

    def distance(self, vectors: np.ndarray) -> np.ndarray:
        """Distance (...) of vectors (..., E) from the mean: 1 is usual in training."""
        standardised = (unit(vectors) - self.mean) * self.scale.astype(np.float64)
        return np.sqrt(np.square(standardised).mean(-1))


@dataclass(frozen=True)
class Head:
    """A logistic regression on vectors of one model, scaled to length 1.

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
    kind : "one-of" or "many-of"
        Whether music has one of the labels, or any number of them.
    known : Known or None
        None for a head that always answers.

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
    kind: Kind = "one-of"
    known: Known | None = None

    @property
    def size(self) -> int:
        """Length E of a vector."""
        return self.weight.shape[1]

    @property
    def weights_hash(self) -> str:
        """Hash of weight and bias."""
        return hashlib.sha256(self.weight.tobytes() + self.bias.tobytes()).hexdigest()

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Probabilities (..., C) of the labels of vectors (..., E) of any length, float32."""
        logits = unit(vectors) @ self.weight.T.astype(np.float64) + self.bias
        if self.kind == "many-of":
            return (1 / (1 + np.exp(-np.clip(logits, -50, 50)))).astype(np.float32)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)

    def sure(self, vectors: np.ndarray) -> np.ndarray:
        """Whether the head answers (...) for vectors (..., E); in doubt its labels mean nothing.

        It doubts sound unlike that of its training, and improbable labels.

        Examples
        --------
        >>> known = Known(np.array([1.0, 0.0]), np.ones(2), np.ones(2), furthest=0.5, beyond=0.0)
        >>> weights = np.eye(2), np.zeros(2)
        >>> head = Head(("low", "high"), *weights, "x", "patchifier-base", known=known)
        >>> head.sure(np.array([[2.0, 0.1], [-2.0, 0.1]])).tolist()
        [True, False]
        """
        if self.known is None:
            return np.ones(vectors.shape[:-1], bool)
        near = self.known.near(vectors)
        if self.kind == "many-of":
            return near
        return near & (self.probabilities(vectors).max(-1) >= self.known.least)

    def save(self, folder: str | Path) -> Path:
        """Write the head into a folder, in place of another head and its card there.

        Raises
        ------
        RequestError
            If the folder holds anything else.
        ValueError
            If a fact is NaN, infinity or no value of JSON.
        """
        facts = _facts(dict(self.facts))
        folder = Path(folder)
        restore_folder(folder)
        require_replaceable(folder)
        plain = self.kind == "one-of" and self.known is None  # earlier versions read it
        values = {"format": 1 if plain else FORMAT, "names": list(self.names)}
        values |= {"identity": self.identity, "model": self.model, "facts": facts}
        tensors = {"weight": self.weight, "bias": self.bias}
        if not plain:
            values["kind"] = self.kind
        if self.known:
            tensors |= {name: getattr(self.known, name) for name in KNOWN}
            values["known"] = {name: getattr(self.known, name) for name in LIMITS}
        with replaced_folder(folder) as new:
            exact = {name: np.ascontiguousarray(each, np.float32) for name, each in tensors.items()}
            save_file(exact, new / WEIGHTS)
            write_json(new / JSON, values)
        return folder


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., E) of length 1, in double precision; zeros stay zeros."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1.0)


def unstandardised(
    weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, E) and bias (C,) for vectors that are not standardised, of a fit on such ones."""
    weight = weight * scale
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


def read(folder: str | Path) -> Head:
    """Read a head from its folder, or from a zip file of it, as the page saves it.

    Raises
    ------
    RequestError
        If it is damaged, of another format, or its numbers do not fit its names.

    Examples
    --------
    >>> from patchifier import weights
    >>> head = read(weights.find_head("drums"))
    >>> head.names, head.model
    (('drums', 'no drums'), 'patchifier-base')
    """
    given = Path(folder)
    try:
        with unpacked(given) as folder:
            return _read(folder, given)
    except RequestError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(given, error) from error  # RuntimeError: encrypted, or compressed otherwise


def _damaged(folder: Path, error: Exception) -> RequestError:
    return RequestError(
        f"{folder} is not a head, or is damaged ({error}): save it again from the page."
    )


def _read(files: Path, folder: Path) -> Head:
    """Read a head from its files; messages name the folder or the zip file."""
    try:
        if (size := (files / JSON).stat().st_size) > MOST_TEXT:
            raise ValueError(f"its {JSON} has {size} bytes")
        values = parse_json(read_text(files / JSON))
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
        kind, known = _kind_and_limits(values)
        tensors = _tensors(files / WEIGHTS, len(names), known=known is not None)
        facts = _facts(values.get("facts"))
    except RequestError:
        raise
    except (*UNREADABLE, safetensors.SafetensorError) as error:
        raise _damaged(folder, error) from error
    if values["model"].startswith("hf://"):
        raise RequestError(f"{folder} names the model {values['model']}: download it first.")
    where = None
    if known:
        where = Known(tensors["mean"], tensors["scale"], tensors["music"], *known)
    settings = values["identity"], values["model"], facts, kind, where
    return Head(names, tensors["weight"], tensors["bias"], *settings)


def _facts(values: Any) -> dict[str, Any]:
    """Facts that can be written as JSON again."""
    if values is None:
        return {}
    if not isinstance(values, dict) or not _is_plain(values):
        raise ValueError("its facts are not all texts and finite numbers, in lists and dicts")
    return dict(values)


def _is_plain(value: Any, deep: int = 0) -> bool:
    """Whether a value is a text, a finite number, true, false, null, or a list or dict of such."""
    if deep > MOST_DEEP:
        return False
    if isinstance(value, dict):
        return all(_is_plain(part, deep + 1) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(_is_plain(part, deep + 1) for part in value)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, int | float):
        return bool(abs(value) <= sys.float_info.max)  # also of an integer that no float holds
    return value is None


def _kind_and_limits(values: Mapping[str, Any]) -> tuple[Kind, tuple[float, float, float] | None]:
    """Kind of a head, and the limits of what it knows."""
    kind, known = values.get("kind", "one-of"), values.get("known")
    if kind not in get_args(Kind):
        raise ValueError(f"its kind is {kind!r}")
    if known is None:
        return kind, None
    limits = furthest, beyond, least = [known[name] for name in LIMITS]
    if not all(type(each) in (int, float) and math.isfinite(each) for each in limits):
        raise ValueError(f"its limits are {limits!r}")
    return kind, (float(furthest), float(beyond), float(least))


def require_names(names: Any) -> tuple[str, ...]:
    """Return the labels of a head: 2 to 1,000 different texts of one line; refuse others."""
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


def _tensors(path: Path, count: int, *, known: bool) -> dict[str, np.ndarray]:
    """Weight (count, E), bias (count,), and if there are any, those of what it knows (E,)."""
    require_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        types = {part.get_dtype() for part in parts.values()}
        if types != {"F32"}:  # numpy has no type for some others
            raise ValueError(f"its numbers are not float32 alone, but {sorted(types)}")
        shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        names = {"weight", "bias", *(KNOWN if known else ())}
        if set(shapes) != names or shapes["bias"] != (count,):
            raise ValueError(f"its tensors are {shapes}")
        rows, *size = shapes["weight"]
        if rows != count or len(size) != 1 or not 1 <= size[0] <= MOST_SIZE:
            raise ValueError(f"its weight has shape {shapes['weight']}")
        if known and any(shapes[name] != tuple(size) for name in KNOWN):
            raise ValueError(f"its tensors are {shapes}")
        found = {name: file.get_tensor(name) for name in names}
    if not all(np.isfinite(each).all() for each in found.values()):
        raise ValueError("it holds NaN or infinity")
    return found

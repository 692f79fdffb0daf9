"""Cosines in which some numbers of a vector count more than others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchifier.config import SIMILARITY_RATIO, Config, RequestError
from patchifier.heads import unit

LEARNT = 32.0  # weight of "layers" where a vector has others, but no "similarity"
UNLIKE = 0.5  # share of what the files should not sound like; see docs/search.md
MOST_WEIGHT = 1e6
SLACK = 1e-5  # more than the error of a cosine in single precision


def default_weights(slices: Mapping[str, int] | None) -> np.ndarray | None:
    """Weights with which a search compares vectors by default; None for the plain cosine.

    Parameters
    ----------
    slices : mapping of str to int
        Sizes of the slices of a vector, in their order; None if they are not known.

    Returns
    -------
    numpy.ndarray, shape (E,), or None
        Where a vector has descriptors beside the slice "layers", that one counts 32 times: it is
        few numbers of many, and tells more about what sounds alike. A vector with the slice
        "similarity" needs no weights, since its length is mostly that of this slice.

    Examples
    --------
    >>> default_weights({"layers": 1, "harmony": 2}).tolist()
    [32.0, 1.0, 1.0]
    >>> default_weights({"layers": 3}) is default_weights({"similarity": 2, "layers": 3}) is None
    True
    """
    if not slices or len(slices) < 2 or "layers" not in slices or "similarity" in slices:
        return None
    return np.concatenate(
        [np.full(size, LEARNT if name == "layers" else 1.0) for name, size in slices.items()]
    )


def slice_weights(config: Config, factors: Mapping[str, float]) -> np.ndarray:
    """Weights of every number of an embedding from factors of its slices.

    Parameters
    ----------
    config : Config
        Of the model, which says what the slices are: ``config.embedding_slices``.
    factors : mapping of str to float
        Factor of each slice, at least 0: 0 leaves it out, 1 is its default weight, as of a slice
        that is not named. Each 1 more adds as much as the heaviest slice has by default: at 2 a
        slice counts about as much as that one, at 3 twice as much.

    Returns
    -------
    numpy.ndarray, shape (E,), float64

    Raises
    ------
    RequestError
        For a name that is no slice, a factor below 0, or if all are 0.

    Notes
    -----
    A slice counts by its squared length. In whitened vectors, a number has a variance of 1, and
    "similarity" has eight times the squared length of all others. Vectors that are not whitened
    are taken as if they were.

    Examples
    --------
    >>> model = patchifier.load()
    >>> weights = slice_weights(model.config, {"harmony": 2.0, "tempo": 0.5})
    >>> [round(weights[model.slices[name]].mean()) for name in ("similarity", "harmony")]
    [1, 135]
    """
    slices = config.embedding_slices
    default = default_weights(sizes_of(config))
    weights = np.ones(config.embedding_size) if default is None else default
    squares = {name: float(weights[part].sum()) for name, part in slices.items()}
    if "similarity" in squares:
        squares["similarity"] = SIMILARITY_RATIO * (len(weights) - squares["similarity"])
    for name, factor in factors.items():
        if name not in slices:
            raise RequestError(
                f"there is no slice {name!r} in these vectors, expected one of {', '.join(slices)}."
            )
        more = max(0.0, factor - 1) * max(squares.values()) / squares[name]
        weights[slices[name]] *= min(factor, 1.0) + more
    require_weights(weights, config.embedding_size)
    return weights


def sizes_of(config: Config) -> dict[str, int]:
    """Sizes of the slices of an embedding, in their order."""
    return {name: part.stop - part.start for name, part in config.embedding_slices.items()}


def require_weights(weights: np.ndarray, size: int) -> np.ndarray:
    """Return weights (E,) in double precision; refuse what is no set of weights."""
    given = np.asarray(weights)
    if given.shape != (size,) or given.dtype.kind not in "fiu":
        raise RequestError(
            f"weights have shape {given.shape} of {given.dtype}, expected ({size},) numbers: "
            "slice_weights makes them from the names of slices."
        )
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise RequestError("weights are below 0, not finite, or all 0: expected some above 0.")
    if given.max() > MOST_WEIGHT:
        raise RequestError(f"a weight is {given.max():g}, expected at most {MOST_WEIGHT:g}.")
    return given.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Metric:
    """A cosine, each squared contribution of which is multiplied by a weight (E,); or plain."""

    weights: np.ndarray | None = None

    @classmethod
    def of(cls, weights: np.ndarray | None, size: int) -> "Metric":
        """Metric of weights, None for the plain cosine; equal weights are no weights."""
        if weights is None:
            return cls()
        checked = require_weights(weights, size)
        return cls() if (checked == checked[0]).all() else cls(checked)

    def unit(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (..., E) of length 1, in which the metric is the plain cosine.

        In double precision. What has no length in this metric becomes a vector of zeros.
        """
        if self.weights is None:
            return unit(vectors)
        return unit(vectors.astype(np.float64) * np.sqrt(self.weights))

    def query(self, direction: np.ndarray) -> np.ndarray:
        """Vector (E,) whose product with a stored vector is that vector's length times its cosine.

        `direction` is one of those that :meth:`unit` gives.
        """
        return direction if self.weights is None else direction * np.sqrt(self.weights)


def direction_of(
    vectors: Sequence[np.ndarray], unlike: Sequence[np.ndarray], metric: Metric
) -> np.ndarray:
    """Direction (E,) of length 1 in a metric: mean of some minus half of the mean of others.

    Refused if the vectors cancel out.
    """
    mean = _mean(vectors, metric)
    return unit(mean - UNLIKE * _mean(unlike, metric)) if len(unlike) else mean


def _mean(vectors: Sequence[np.ndarray], metric: Metric) -> np.ndarray:
    mean = metric.unit(np.stack(vectors)).mean(axis=0)
    length = np.linalg.norm(mean)
    if length < SLACK:
        raise RequestError(
            "the vectors to search with cancel out, or have no direction with these weights: give "
            "fewer of them, or other weights."
        )
    return np.asarray(mean / length)

"""How far two sets of embeddings lie apart: Frechet and kernel audio distance.

Frechet audio distance (Kilgour et al. 2019, after Heusel et al. 2017) is that of two Gaussians with
the means and covariances of the sets. Of finite sets it comes out too large, by about a constant
over the number of rows; so, as Chong and Forsyth (2020) and Gui et al. (2024) do, it is computed on
ever smaller parts and extended by a straight line to sets without end. Kernel audio distance (after
Binkowski et al. 2018) is the squared maximum mean discrepancy of a polynomial kernel, whose
estimate needs no such correction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.library.stored import read, require_same_model

POINTS = 8  # fractions of the sets that the line is fitted to
DRAWS = 6  # parts drawn for each fraction below 1
MIN_KERNEL_ROWS = 10
ROWS_PER_DIMENSION = 4  # of the smallest part: below, terms of second order bend the line


@dataclass(frozen=True)
class Frechet:
    """Frechet distance of two sets.

    Attributes
    ----------
    value : float
        Of the sets as they are; at least 0, too large by about a constant over the number of rows.
    corrected : float or None
        Extended to sets without end; may fall a little below 0 where the sets are alike. None where
        the rows are too few to tell.
    fractions, values : tuple of float
        The parts of both sets that the line was fitted to, and the mean distance of such parts.
    """

    value: float
    corrected: float | None
    fractions: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """Kernel distance of two sets.

    Attributes
    ----------
    value : float
        Mean over subsets; unbiased, so it may fall a little below 0 where the sets are alike, and
        does so where they share rows.
    deviation : float
        Standard deviation over subsets.
    subset_rows, subsets : int
        Rows in each, and their number.
    """

    value: float
    deviation: float
    subset_rows: int
    subsets: int


@dataclass(frozen=True)
class Distance:
    """Frechet and kernel distance of two tables of embeddings, and the number of rows in each.

    No Frechet distance where rows are too few for one.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 3.0
    >>> found = Distance(frechet_distance(a, b), kernel_distance(a, b), (100, 100))
    >>> found.frechet.value > 9, found.to_dict()["rows"]
    (True, [100, 100])
    """

    frechet: Frechet | None
    kernel: Kernel
    rows: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {
            "frechet": self.frechet.value if self.frechet else None,
            "frechet_corrected": self.frechet.corrected if self.frechet else None,
            "kernel": self.kernel.value,
            "kernel_deviation": self.kernel.deviation,
            "kernel_subset_rows": self.kernel.subset_rows,
            "rows": list(self.rows),
        }


def distance(first: str | Path, second: str | Path, *, seed: int = 0) -> Distance:
    """Compare two tables of embeddings.

    Parameters
    ----------
    first, second : str or Path
        Parquet, as ``patchifier embed`` writes it, by the same model in windows of the same length.
        Every row counts the same.
    seed : int
        Of the draws of subsets.

    Returns
    -------
    Distance

    Raises
    ------
    RequestError
        If a table is refused, if the models differ, or if there are too few rows.

    Examples
    --------
    >>> from patchifier.library import embed_library
    >>> _ = embed_library("music", "windows.parquet", window_s=2.0, workers=1)
    >>> found = distance("windows.parquet", "windows.parquet")
    >>> found.rows, found.frechet is None, found.kernel.value < 0.1
    ((33, 33), True, True)
    """
    a, b = read(first), read(second)
    names = (str(first), str(second))
    require_same_model((a.identity, a.length), (b.identity, b.length), names=names)
    windows_s = [table.metadata.get("window_s") for table in (a, b)]
    if windows_s[0] != windows_s[1]:
        raise RequestError(
            f"rows are about {windows_s[0]} s against {windows_s[1]} s (None: a whole file): "
            f"embed {first} and {second} with the same --window_s."
        )
    enough = min(len(a), len(b)) > a.length
    frechet = frechet_distance(a.vectors, b.vectors, seed=seed, names=names) if enough else None
    kernel = kernel_distance(a.vectors, b.vectors, seed=seed, names=names)
    return Distance(frechet, kernel, (len(a), len(b)))


def frechet_distance(
    a: np.ndarray,
    b: np.ndarray,
    *,
    seed: int = 0,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> Frechet:
    """Frechet distance of two sets of vectors, as it is and corrected for their sizes.

    Parameters
    ----------
    a, b : ndarray (n, E), (m, E)
        More than E rows each. The correction needs 8 E.
    seed : int
        Of the draws of parts.
    names : tuple of str
        For messages.

    Returns
    -------
    Frechet

    Raises
    ------
    RequestError
        For other shapes, values that are not finite, or at most E rows, whose covariance is
        singular.

    Notes
    -----
    Parts are the same fraction f of both sets, so that the excess c / n + d / m grows as 1 / f in
    both; the line is fitted to 8 values of 1 / f, evenly spaced, from 1 to what leaves 4 E rows,
    but at most 4.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 3.0
    >>> frechet_distance(a, a).value < 1e-9, frechet_distance(a, b).value > 9
    (True, True)
    """
    a, b = _checked(a, b)
    for vectors, name in zip((a, b), names):
        if len(vectors) <= a.shape[1]:
            raise RequestError(
                f"{name} has {len(vectors)} rows of {a.shape[1]} numbers: their covariance is "
                "singular, and a Frechet distance needs more rows than "
                "numbers. Embed more files, or in shorter windows, or use the kernel distance, "
                f"which needs {MIN_KERNEL_ROWS} rows."
            )
    value = gaussian_distance(*_moments(a), *_moments(b))
    stretch = min(4.0, min(len(a), len(b)) / (ROWS_PER_DIMENSION * a.shape[1]))
    if stretch < 2:
        return Frechet(value, None)
    inverse = np.linspace(1, stretch, POINTS)  # 1 / fraction
    values = [value, *_values_of_parts(a, b, 1 / inverse[1:], np.random.default_rng(seed))]
    corrected = float(np.polyfit(inverse, values, 1)[1])
    return Frechet(value, corrected, tuple((1 / inverse).tolist()), tuple(values))


def _values_of_parts(
    a: np.ndarray, b: np.ndarray, fractions: np.ndarray, generator: np.random.Generator
) -> Iterator[float]:
    for fraction in fractions:
        draws = [
            gaussian_distance(
                *_moments(_part(a, fraction, generator)), *_moments(_part(b, fraction, generator))
            )
            for _ in range(DRAWS)
        ]
        yield float(np.mean(draws))


def _part(vectors: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    return vectors[generator.permutation(len(vectors))[: round(fraction * len(vectors))]]


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (E,) and unbiased covariance (E, E)."""
    return vectors.mean(0), np.atleast_2d(np.cov(vectors, rowvar=False))


def gaussian_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians by means (E,) and covariances (E, E).

    Notes
    -----
    ``|mean difference|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2``. The last trace is the sum of
    the singular values of A^1/2 B^1/2. Unlike the square root of a product, it has no imaginary
    part, and it stays precise where a covariance is nearly singular.
    """
    shared = np.linalg.norm(_root(covariance_a) @ _root(covariance_b), "nuc")
    distance = (
        ((mean_a - mean_b) ** 2).sum()
        + np.trace(covariance_a)
        + np.trace(covariance_b)
        - 2 * shared
    )
    return max(0.0, float(distance))  # of equal Gaussians, a rounding may fall below


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    *,
    subsets: int = 100,
    subset_rows: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> Kernel:
    """Kernel distance of two sets of vectors.

    Squared maximum mean discrepancy of the kernel (x . y / E + 1) ** 3.

    Parameters
    ----------
    a, b : ndarray (n, E), (m, E)
        At least 10 rows each.
    subsets : int
        How many to average over.
    subset_rows : int
        Rows of each set in a subset; at most half of the smaller set, so that subsets differ.
    seed : int
        Of the draws of subsets.
    names : tuple of str
        For messages.

    Returns
    -------
    Kernel

    Raises
    ------
    RequestError
        For other shapes, values that are not finite, or too few rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 3.0
    >>> kernel_distance(a, b).value > kernel_distance(a, a).value
    True
    """
    a, b = _checked(a, b)
    for vectors, name in zip((a, b), names):
        if len(vectors) < MIN_KERNEL_ROWS:
            raise RequestError(
                f"{name} has {len(vectors)} rows, a kernel distance needs {MIN_KERNEL_ROWS}: "
                "embed more files, or in shorter windows."
            )
    if subsets < 1 or subset_rows < 2:
        raise RequestError(
            f"kernel distance of {subsets} subsets of {subset_rows} rows, expected at least 1 of 2."
        )
    rows = min(subset_rows, len(a) // 2, len(b) // 2)
    generator = np.random.default_rng(seed)
    values = [
        discrepancy(*(vectors[generator.permutation(len(vectors))[:rows]] for vectors in (a, b)))
        for _ in range(subsets)
    ]
    return Kernel(float(np.mean(values)), float(np.std(values)), rows, subsets)


def discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of sets (n, E), (m, E) with a cubic kernel."""
    within = [
        (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))
        for kernel in (_kernel(a, a), _kernel(b, b))
    ]
    return float(sum(within) - 2 * _kernel(a, b).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    base = a @ b.T / a.shape[1] + 1
    return base * base * base  # a power takes 20 times as long


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise RequestError(
            f"the sets have shapes {a.shape} and {b.shape}, expected (rows, E) of one E."
        )
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise RequestError("the vectors are not all finite: embed the files again.")
    return a, b

"""Vectors in two dimensions and in groups: UMAP and k-means, seeded."""

import importlib.util
import warnings
from dataclasses import dataclass

import numpy as np

FEWEST = 15  # points for UMAP; fewer are laid out along their principal axes
AXES = 50  # principal axes that UMAP and k-means work on
MOST_GROUPS = 20
FIRST_AMONG = 2000  # vectors that the axes of a first layout are found from
SEED = 0


@dataclass(frozen=True)
class Layout:
    """Places (n, 2) float32 in about [-1, 1], and the group (n,) of each, from 0 on."""

    places: np.ndarray
    clusters: np.ndarray


def lay_out(vectors: np.ndarray) -> Layout:
    """Lay vectors (n, E) of length 1 out in two dimensions.

    The same for the same vectors and versions of the packages. By UMAP (cosine, seeded); along the
    two longest principal axes for few vectors, or where umap-learn is not installed.
    """
    axes = principal(vectors, min(AXES, *vectors.shape))
    few = len(vectors) < FEWEST or importlib.util.find_spec("umap") is None
    return Layout(_framed(axes[:, :2] if few else _umap(axes)), groups(axes))


def first_layout(vectors: np.ndarray) -> Layout:
    """Lay vectors out along their two longest principal axes, in one group: at once."""
    places = principal(vectors, min(2, *vectors.shape), among=FIRST_AMONG)
    return Layout(_framed(places), np.zeros(len(vectors), np.uint16))


def _framed(places: np.ndarray) -> np.ndarray:
    """Places (n, 2) float32 in [-1, 1]."""
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    places = places - (places.max(0) + places.min(0)) / 2
    return (places / max(float(np.abs(places).max()), 1e-9)).astype(np.float32)


def principal(vectors: np.ndarray, count: int, *, among: int | None = None) -> np.ndarray:
    """Coordinates (n, count) float32 of vectors along their longest principal axes.

    These are found from all vectors, or from `among` of them.
    """
    some = vectors[:: max(1, len(vectors) // (among or len(vectors)))]
    mean = some.mean(0)
    centred = some - mean
    _, axes = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    axes = axes[:, ::-1][:, :count].astype(np.float32)
    # an axis has no direction: its largest number is positive
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.asarray((vectors - mean) @ (axes * signs))


def _umap(axes: np.ndarray) -> np.ndarray:
    count = min(FEWEST, len(axes) - 1)
    with warnings.catch_warnings():
        # that a seed means one thread, and no later points; in a notebook, that tqdm has no widgets
        warnings.simplefilter("ignore")
        import umap

        made = umap.UMAP(
            n_neighbors=count,
            min_dist=0.1,
            random_state=SEED,
            n_jobs=1,
            precomputed_knn=neighbours(axes, count),
        )
        return np.asarray(made.fit_transform(axes))


def neighbours(axes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest points (n, count) of each, itself first, and their distances: exact.

    UMAP's own search compiles for long, and calls Python for each pair of few points.
    """
    from sklearn.neighbors import NearestNeighbors  # umap-learn brings it

    others = NearestNeighbors(n_neighbors=count - 1, algorithm="brute").fit(axes)
    distances, places = others.kneighbors()  # without the point itself
    itself = np.arange(len(axes), dtype=np.int32)
    return (
        np.column_stack([itself, places.astype(np.int32)]),
        np.column_stack([np.zeros(len(axes), np.float32), distances.astype(np.float32)]),
    )


def groups(axes: np.ndarray) -> np.ndarray:
    """Group (n,) of each vector by k-means; the largest group is 0."""
    count = min(MOST_GROUPS, max(1, round((len(axes) / 8) ** 0.5)))
    if count < 2 or importlib.util.find_spec("sklearn") is None:
        return np.zeros(len(axes), np.uint16)
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=3, random_state=SEED).fit_predict(axes)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.argsort(order)[found].astype(np.uint16)

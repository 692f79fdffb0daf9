"""A transformer for scikit-learn's pipelines: files or waveforms in, a matrix out.

    make_pipeline(PatchifierEmbedder(), StandardScaler(), LogisticRegression())  # files
    make_pipeline(PatchifierEmbedder(sample_rate=44100), LogisticRegression())  # waveforms

Shapes: n clips, S samples, E numbers of an embedding.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from patchifier import embed
from patchifier.config import RequestError, update
from patchifier.extras import need

Clips = Sequence[str | Path | np.ndarray] | np.ndarray
base = need("sklearn.base")
validation = need("sklearn.utils.validation")


class PatchifierEmbedder(  # type: ignore[misc]
    base.ClassNamePrefixFeaturesOutMixin,  # type: ignore[name-defined]
    base.TransformerMixin,  # type: ignore[name-defined]
    base.BaseEstimator,  # type: ignore[name-defined]
):
    """Embed clips inside a pipeline. Nothing is learnt.

    To fit is to load the model and to check the clips.

    Parameters
    ----------
    model : str or Path
        What :func:`patchifier.load` takes; the bundled model by default.
    pooling : str
        "cls", "mean", "mean+max" or "mean+std"; the model's own by default.
    layers : sequence of int
        Layers to pool; the model's own by default.
    sample_rate : int
        Of waveforms, in Hz; without it they are refused. Files know their own.
    device : str
        For example "cpu" or "cuda".

    Attributes
    ----------
    identity_ : str
        Hash of the weights and settings that were fitted with.
    n_features_in_ : int
        Columns S of a matrix that was fitted with; clips in a list may have any lengths, and there
        is none.

    Notes
    -----
    A pickle holds the model's path and ``identity_``, not its weights: they are read again when
    they are needed, and others under the same path are refused.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pooling: str | None = None,
        layers: Sequence[int] | None = None,
        sample_rate: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.layers = layers
        self.sample_rate = sample_rate
        self.device = device

    def fit(self, X: Clips, y: object = None) -> Self:
        """Load the model and check the clips.

        Parameters
        ----------
        X : list of str, Path or array (S,), or array (n, S)
            Files, waveforms at ``sample_rate``, or both.
        y : ignored

        Returns
        -------
        PatchifierEmbedder

        Raises
        ------
        RequestError
            If there is no such model, pooling or layer, X holds no clips, or waveforms without
            ``sample_rate``.
        """
        _clips(self, X, reset=True)
        self._loaded = self._load()
        self.identity_ = self._loaded.identity
        self._n_features_out = self._loaded.size
        return self

    def transform(self, X: Clips) -> np.ndarray:
        """Embed clips: (n, E) float32, a row for each in the order of X.

        No row depends on another.
        """
        validation.check_is_fitted(self, "identity_")
        clips = _clips(self, X, reset=False)
        return self._embedder().embed(clips, self.sample_rate)

    def _embedder(self) -> embed.Embedder:
        if "_loaded" not in vars(self):
            loaded = self._load()
            if loaded.identity != self.identity_:
                raise RequestError(
                    f"the model {self.model or 'of the package'} is not the one that this was "
                    "fitted with: put that one back, or fit again."
                )
            self._loaded = loaded
        return self._loaded

    def _load(self) -> embed.Embedder:
        if self.pooling is None and self.layers is None:
            return embed.load(self.model, device=self.device)
        from patchifier import checkpoint  # other settings than the stored graph's need torch

        found = checkpoint.load(self.model)
        wanted = {
            "pooling": self.pooling,
            "layers": None if self.layers is None else list(self.layers),
        }
        changes = {name: value for name, value in wanted.items() if value is not None}
        changed = replace(found, config=update(found.config, {"embed": changes}))
        return checkpoint.embedder_of(changed, device=checkpoint.find_device(self.device))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True  # paths
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _clips(estimator: PatchifierEmbedder, X: Any, *, reset: bool) -> list[Any]:
    """Files and waveforms as a list; a numeric matrix goes through scikit-learn's own checks."""
    if isinstance(X, str | Path):
        raise RequestError(f"X is the path {str(X)!r}, expected a list of them.")
    if isinstance(X, list | tuple) and not X:
        raise RequestError("X is empty, expected at least one file or waveform.")
    matrix = (
        None if isinstance(X, list | tuple) and isinstance(X[0], str | Path | np.ndarray) else X
    )
    if matrix is not None and not _names(matrix):
        clips = list(
            validation.validate_data(estimator, matrix, reset=reset, dtype=[np.float32, np.float64])
        )
    else:
        clips = [
            item if isinstance(item, str | Path) else np.asarray(item)
            for item in (X if matrix is None else np.asarray(matrix).ravel())
        ]
    if estimator.sample_rate is None and not all(isinstance(clip, str | Path) for clip in clips):
        raise RequestError(
            "X holds waveforms, and their rate is never guessed: give it, as in "
            "PatchifierEmbedder(sample_rate=44100)."
        )
    return clips


def _names(X: Any) -> bool:
    """Whether an array or a column holds paths."""
    array = (
        X
        if hasattr(X, "dtype")
        else np.asarray(X, dtype=object)
        if hasattr(X, "to_numpy")
        else None
    )
    return (
        array is not None
        and getattr(array, "ndim", 0) == 1
        and len(array) > 0
        and isinstance(np.asarray(array).ravel()[0], str | Path)
    )

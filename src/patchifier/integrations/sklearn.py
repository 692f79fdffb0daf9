"""A transformer for scikit-learn's pipelines: files or waveforms in, a matrix out.

    make_pipeline(PatchifierEmbedder(), StandardScaler(), LogisticRegression())  # files
    make_pipeline(PatchifierEmbedder(sample_rate=44100), LogisticRegression())  # waveforms
    ColumnTransformer([("music", PatchifierEmbedder(), ["file"])])  # a column of a data frame

Shapes: n clips, S samples, E numbers of an embedding.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from patchifier import embed, jobs
from patchifier.config import RequestError, update
from patchifier.extras import need

Clips = Sequence[str | Path | np.ndarray] | np.ndarray
base = need("sklearn.base")
validation = need("sklearn.utils.validation")
ON_ERROR = ("raise", "nan")
# Checks of scikit-learn that pass a matrix of numbers.
OF_WAVEFORMS = (
    "check_dict_unchanged", "check_dont_overwrite_parameters", "check_dtype_object",
    "check_estimators_dtypes", "check_estimators_fit_returns_self", "check_estimators_nan_inf",
    "check_estimators_overwrite_params", "check_estimators_pickle",
    "check_f_contiguous_array_estimator", "check_fit2d_1feature", "check_fit2d_1sample",
    "check_fit2d_predict1d", "check_fit_check_is_fitted", "check_fit_idempotent",
    "check_fit_score_takes_y", "check_methods_sample_order_invariance",
    "check_methods_subset_invariance", "check_n_features_in",
    "check_n_features_in_after_fitting", "check_pipeline_consistency",
    "check_positive_only_tag_during_fit", "check_readonly_memmap_input",
    "check_transformer_data_not_an_array", "check_transformer_general",
    "check_transformer_preserve_dtypes",
)  # fmt: skip


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
    on_error : str
        What a file or waveform that cannot be embedded does: "raise" ends ``transform``, "nan"
        makes its row NaN and warns with the reason.

    Attributes
    ----------
    identity_ : str
        Hash of the weights and settings that were fitted with.
    n_features_in_ : int
        Columns S of a matrix that was fitted with, or 1 for a column of clips. A list has none.
    feature_names_in_ : array of str
        Name of the column of a data frame that was fitted with.

    Notes
    -----
    A pickle holds the model's path and ``identity_``, not its weights: they are read again when
    they are needed, and others under the same path are refused. With ``on_error="nan"`` the whole
    log-mel of a file is in memory.

    Examples
    --------
    >>> PatchifierEmbedder().fit_transform(["music/one.ogg"]).shape[0]
    1
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pooling: str | None = None,
        layers: Sequence[int] | None = None,
        sample_rate: int | None = None,
        device: str = "cpu",
        on_error: str = "raise",
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.layers = layers
        self.sample_rate = sample_rate
        self.device = device
        self.on_error = on_error

    def fit(self, X: Clips, y: object = None) -> Self:
        """Load the model and check the clips.

        Parameters
        ----------
        X : list or column of str, Path or array (S,), or array (n, S)
            Files, waveforms at ``sample_rate``, or both. A column is an array of objects or a data
            frame, (n,) or (n, 1).
        y : ignored

        Returns
        -------
        PatchifierEmbedder

        Raises
        ------
        RequestError
            If there is no such model, pooling or layer, X holds no clips, or waveforms without
            ``sample_rate``; or ``on_error`` is another word.
        """
        if self.on_error not in ON_ERROR:
            raise RequestError(f"on_error is {self.on_error!r}, expected one of {ON_ERROR}.")
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
        clips, embedder = _clips(self, X, reset=False), self._embedder()
        if self.on_error == "raise":
            return embedder.embed(clips, self.sample_rate)
        rows, good = np.full((len(clips), embedder.size), np.nan, np.float32), list[int]()
        bad: list[str] = []
        log_mels = self._log_mels(embedder, clips, good, bad)
        for first in log_mels:
            vectors = embedder.embed_log_mels(itertools.chain([first], log_mels))
            rows[good] = vectors
        for reason in bad:
            warnings.warn(reason, stacklevel=2)
        return rows

    def _log_mels(
        self, embedder: embed.Embedder, clips: Sequence[Any], good: list[int], bad: list[str]
    ) -> Iterator[np.ndarray]:
        """Log-mels of the clips that have one; rows go to `good`, reasons of others to `bad`."""
        for row, clip in enumerate(clips):
            try:
                found = embedder.log_mel(clip, self.sample_rate)
            except jobs.BAD_ITEM as error:
                name = str(clip) if isinstance(clip, str | Path) else "a waveform"
                reason = jobs.skip_reason(name, error)
                bad.append(f"row {row} of X is NaN: {reason}")
            else:
                good.append(row)
                yield found

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
        need("torch")  # for other settings than those of the stored graph
        from patchifier import checkpoint

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


def expected_failed_checks(estimator: PatchifierEmbedder) -> dict[str, str]:
    """Checks of scikit-learn that fail by design, each with the reason.

    Parameters
    ----------
    estimator : PatchifierEmbedder

    Returns
    -------
    dict of str to str
        As ``check_estimator(estimator, expected_failed_checks=...)`` takes it. The function is what
        ``parametrize_with_checks`` takes.

    Examples
    --------
    >>> expected_failed_checks(PatchifierEmbedder())["check_dtype_object"]
    'it passes waveforms, and their rate is never guessed: sample_rate is None'
    """
    if estimator.sample_rate is None:
        reason = "it passes waveforms, and their rate is never guessed: sample_rate is None"
        return dict.fromkeys(OF_WAVEFORMS, reason)
    reason = "float32: the last digits of a vector depend on its batch, and it allows 1e-4 of each"
    return {"check_methods_subset_invariance": reason}


def _clips(estimator: PatchifierEmbedder, X: Any, *, reset: bool) -> list[Any]:
    """Files and waveforms as a list; a numeric matrix goes through scikit-learn's own checks."""
    if isinstance(X, str | Path):
        raise RequestError(f"X is the path {str(X)!r}, expected a list of them.")
    if isinstance(X, list | tuple) and not X:
        raise RequestError("X is empty, expected at least one file or waveform.")
    column = _column(X)
    if column is None:
        types = [np.float32, np.float64]
        clips = list(validation.validate_data(estimator, X, reset=reset, dtype=types))
    else:
        if getattr(X, "ndim", 1) == 2:  # names and number of its columns
            validation.validate_data(estimator, X, reset=reset, skip_check_array=True)
        clips = [item if isinstance(item, str | Path) else np.asarray(item) for item in column]
    if estimator.sample_rate is None and not all(isinstance(clip, str | Path) for clip in clips):
        raise RequestError(
            "X holds waveforms, and their rate is never guessed: give it, as in "
            "PatchifierEmbedder(sample_rate=44100)."
        )
    return clips


def _column(X: Any) -> list[Any] | None:
    """Items of a list, an array or a data frame (n,) or (n, 1) of files or waveforms, else None."""
    if isinstance(X, list | tuple):
        items = list(X)
    elif getattr(X, "ndim", 0) in (1, 2) and np.asarray(X).dtype.kind in "OUT":
        items = list(np.asarray(X, dtype=object).ravel())
    else:
        return None
    if not items or not isinstance(items[0], str | Path | np.ndarray):
        return None
    if len(items) > len(X):
        raise RequestError(
            f"X has {len(items) // len(X)} columns, expected one of files or waveforms: choose it, "
            'as in ColumnTransformer([("music", PatchifierEmbedder(), ["file"])]).'
        )
    return items

"""From a file, a waveform or a log-mel to an embedding: enter where your data is."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import audio, checkpoint, spectrogram, tasks, windows
from patchifier.config import Config, RequestError, digest, identity_form
from patchifier.nn import pooling
from patchifier.nn.encode import CutMusic, EncodedWindows, Means, encode_windows
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

# A file, samples, or the log-mel (M, T) of one piece of music in parts.
Music = str | Path | np.ndarray | Tensor | Iterator[Tensor]
Read = Callable[[EncodedWindows], Tensor]  # windows -> (B, E)
Arrays = dict[str, np.ndarray]  # weights by name


def load(path: str | Path | None = None, *, device: str = "cpu") -> "Embedder":
    """Load a model.

    Parameters
    ----------
    path : str or Path
        By default "patchifier-base", which comes with the package. Else another bundled model, such
        as "patchifier-paper" (a folder of that name is "./patchifier-paper"), a model folder, as
        training writes it, or, downloaded, "hf://owner/name" or "hf://owner/name@revision".
    device : str
        "cpu", "cuda", "cuda:1", "mps", or "auto", which is the best available.

    Returns
    -------
    Embedder

    Raises
    ------
    RequestError
        If there is no such model, or no such device.

    Examples
    --------
    >>> import patchifier
    >>> model = patchifier.load()
    >>> model.embed("music/one.ogg").shape == (model.size,)
    True
    """
    found, loaded = checkpoint.find_device(device), checkpoint.load(path)
    return Embedder(loaded.model, loaded.config, head=loaded.head, task=loaded.task, device=found)


@dataclass(frozen=True)
class Embedding:
    """Vectors (k, E) float32 over time, from `start_s` to `end_s` (k,) each, in seconds."""

    vectors: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


class Embedder:
    """A model with the settings that turn music into vectors.

    Parameters
    ----------
    model : Patchifier
        Changed in place: accelerated and put into evaluation mode.
    config : Config
        What it was made with. ``config.embed`` says how a sequence becomes a vector.
    head, task : Head, Task
        Of a fine-tuned model.
    device : str
        Where to compute.

    Notes
    -----
    Music longer than the trained sequence is cut into windows of trained length, which start every
    ``hop_patches`` patches, the last one anchored to the end; the embedding is the mean of their
    vectors. A patch is extracted once. Padding is masked, so a vector does not depend on its batch.
    """

    def __init__(
        self,
        model: Patchifier,
        config: Config,
        *,
        head: Head | None = None,
        task: Task | None = None,
        device: str = "cpu",
    ) -> None:
        pooling.require_embed(config)
        model, self.config = checkpoint.without_other_statistics(model, config)
        self.model, self.head, self.task = accelerate(model.to(device).eval()), head, task
        self.device = torch.device(device)
        if head is not None:
            head.to(device).eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain arrays: processes share no memory, and each finds the device anew."""
        head = None if self.head is None else _arrays(self.head)
        return _rebuilt, (self.config, _arrays(self.model), head, self.task, str(self.device))

    def __repr__(self) -> str:
        """Length of a vector, number of parameters, and device."""
        parameters = f"{self.model.parameter_count():,} parameters"
        return f"<Embedder: vectors of {self.size} numbers, {parameters}, on {self.device}>"

    @property
    def size(self) -> int:
        """Length E of an embedding."""
        return self.config.embedding_size

    @property
    def slices(self) -> dict[str, slice]:
        """Slices of an embedding: "layers", then each of ``config.embed.summaries``."""
        return pooling.slices_of(self.config)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights and of all settings that an embedding depends on.

        Vectors with the same identity can be compared.
        """
        config, values = self.config, identity_form(self.config)
        sections = [values[name] for name in ("spectrogram", "model", "embed")]
        lengths = config.pretrain.n_patches, config.pretrain.stage_two_patches
        weights = checkpoint.weights_hash(self.model)
        return digest(*sections, *lengths, weights, *pooling.summaries_version(config))

    def embed(self, x: Music | Sequence[Music], sample_rate: int | None = None) -> np.ndarray:
        """Embed music.

        Parameters
        ----------
        x : str, Path, array of float (S,) or (channels, S), a list of these, or an array of paths
            Audio files, or samples in [-1, 1] (overshoot passes) at `sample_rate`. A file is read
            in blocks, so memory does not grow with its length.
        sample_rate : int
            Of arrays, in Hz. Files know their own.

        Returns
        -------
        numpy.ndarray, shape (E,), or (n, E) for a list; float32

        Raises
        ------
        RequestError
            For a file that cannot be read, an array without a rate, integers or floats at their
            scale, NaN, or channels last.

        Examples
        --------
        >>> model = patchifier.load()
        >>> model.embed("music/one.ogg").shape == (model.size,)
        True
        >>> samples = np.zeros(44_100, np.float32)
        >>> model.embed([samples, samples], 44_100).shape == (2, model.size)
        True
        """
        return self._each(x, sample_rate, self._pooled)

    def predict(self, x: Music | Sequence[Music], sample_rate: int | None = None) -> np.ndarray:
        """Predict with a fine-tuned model: probabilities or values, in the order of ``task.names``.

        Parameters
        ----------
        x, sample_rate
            As for :meth:`embed`, which also names the errors. A model without a head is refused.

        Returns
        -------
        numpy.ndarray, shape (C,), or (n, C) for a list; float32
            Mean over windows, as in the test of the model.
        """
        self._require_head()
        return self._each(x, sample_rate, self._predicted)

    def predict_windows(
        self,
        x: Music,
        sample_rate: int | None = None,
        *,
        window_s: float,
        hop_s: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Embedding:
        """Predict for stretches of music, with the arguments of :meth:`embed_windows`.

        `start_s` and `end_s` select a part of a file. Times count from the start of the file.
        """
        self._require_head()
        pieces = self.pieces(x, sample_rate, start_s=start_s, end_s=end_s)
        return self._stretches(pieces, window_s, hop_s, self._predicted)

    def require_task(self) -> Task:
        """Return the task of a fine-tuned model; a model without a head is refused."""
        return self._require_head()[1]

    def _require_head(self) -> tuple[Head, Task]:
        if self.head is not None and self.task is not None:
            return self.head, self.task
        raise RequestError(
            "this model has no head, expected one from 'patchifier finetune', such as "
            "RUN/full/model."
        )

    def embed_windows(
        self,
        x: Music,
        sample_rate: int | None = None,
        *,
        window_s: float,
        hop_s: float | None = None,
    ) -> Embedding:
        """Embed stretches of music, each alone but for half an FFT window of sound around it.

        Parameters
        ----------
        x, sample_rate
            One piece of music, as for :meth:`embed`.
        window_s, hop_s : float
            Length of a stretch and time between the starts of two, in seconds, rounded to frames.
            By default they touch. The last one is anchored to the end and may overlap the one
            before.

        Returns
        -------
        Embedding
            At least one row. Music shorter than a stretch is one row.

        Examples
        --------
        >>> model = patchifier.load()
        >>> found = model.embed_windows("music/one.ogg", window_s=10.0)
        >>> len(found.vectors), found.start_s.round(1).tolist()
        (2, [0.0, 10.0])
        """
        return self._stretches(self.pieces(x, sample_rate), window_s, hop_s, self._pooled)

    def _stretches(
        self, pieces: Iterable[Tensor], window_s: float, hop_s: float | None, read: Read
    ) -> Embedding:
        frame_s = self.config.spectrogram.frame_s
        length, hop = windows.stretch_frames(window_s, hop_s, self.config.spectrogram)
        spans: list[tuple[int, int]] = []

        def stretches() -> Iterator[CutMusic]:
            for first, log_mel in windows.stream_stretches(pieces, length=length, hop=hop):
                spans.append((first, first + log_mel.shape[-1]))
                yield windows.stream_cut([log_mel], self.config)

        vectors = self._means(stretches(), read)
        return Embedding(vectors, *(np.array(spans).T * frame_s))

    def embed_patches(self, x: Music, sample_rate: int | None = None) -> Embedding:
        """Embed every patch in its context: the mean over the windows that contain it.

        Parameters
        ----------
        x, sample_rate
            One piece of music, as for :meth:`embed`.

        Returns
        -------
        Embedding
            A row of ``width * len(layers)`` numbers for each patch. The last patch is anchored to
            the end.

        Examples
        --------
        >>> model = patchifier.load()
        >>> found = model.embed_patches("music/one.ogg")
        >>> len(found.vectors), found.end_s[:2].round(3).tolist()
        (27, [0.743, 1.486])
        """
        config, means, frames = self.config, Means(), 0

        def counted() -> Iterator[Tensor]:
            nonlocal frames
            for piece in self.pieces(x, sample_rate):
                frames += piece.shape[-1]
                yield piece

        for batch in encode_windows(self.model, config, [windows.stream_cut(counted(), config)]):
            valid = batch.n_new_frames > 0
            chosen = [batch.layers[layer][:, -valid.shape[1] :] for layer in config.embed.layers]
            vectors = torch.cat(chosen, dim=-1).cpu()  # (B, N, E')
            for first, row, kept in zip(batch.first, vectors, valid.cpu(), strict=True):
                means.add(range(first, first + int(kept.sum())), row[kept])
        length, frame_s = config.model.patch_frames, config.spectrogram.frame_s
        starts = np.array(spectrogram.patch_starts(frames, length=length, tail="anchor"))
        ends = np.minimum(starts + length, frames)
        return Embedding(means.result(), starts * frame_s, ends * frame_s)

    def log_mel(self, x: Music, sample_rate: int | None = None) -> Tensor:
        """Log-mel (M, T) of a file or of samples, with this model's settings.

        Examples
        --------
        >>> patchifier.load("patchifier-paper").log_mel(np.zeros(22_050, np.float32), 22_050).shape
        torch.Size([64, 44])
        """
        return torch.cat(list(self.pieces(x, sample_rate)), dim=-1)

    def pieces(
        self,
        x: Music,
        sample_rate: int | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Iterator[Tensor]:
        """Yield the log-mel of a file, of a part of it, or of samples, in pieces (M, T').

        An iterator of such pieces is checked and passed on.
        """
        config = self.config.spectrogram
        if (start_s, end_s) != (0.0, None) and not isinstance(x, str | Path):
            raise RequestError(
                f"start_s and end_s are of files, but x is of type {type(x).__name__}: give the "
                "part that is meant."
            )
        if isinstance(x, Iterator):
            yield from (windows.require_log_mel(piece, self.config) for piece in x)
        elif isinstance(x, str | Path):
            rate = config.sample_rate
            blocks = audio.blocks(x, sample_rate=rate, start_s=start_s, end_s=end_s)
            yield from spectrogram.stream_log_mel(blocks, config)
        else:
            waveform = audio.as_waveform(x, sample_rate, target_rate=config.sample_rate)
            yield spectrogram.log_mel(waveform, config)

    def embed_log_mels(self, log_mels: Iterable[Tensor]) -> np.ndarray:
        """Embed log-mels (M, T) of any lengths: (n, E) float32."""
        return self._means(self._patches(iter([log_mel]) for log_mel in log_mels), self._pooled)

    def embed_sequences(self, sequences: Iterable[Tensor]) -> np.ndarray:
        """Embed sequences of patches (N, 1, M, T) that touch, of any lengths: (n, E) float32.

        :func:`patchifier.spectrogram.cut` makes them of whole patches. If the last patch is
        anchored to the end, the frames that it repeats count twice in summaries of rhythm;
        :meth:`embed_log_mels` avoids it.
        """
        items = windows.require_sequences(sequences, self.config)
        cuts = [[(patch, patch.shape[-1]) for patch in patches] for patches in items]
        return self._means(cuts, self._pooled)

    def _each(self, x: Any, sample_rate: int | None, read: Read) -> np.ndarray:
        """Embed or predict for one piece of music, or for each of a list or array of paths."""
        kind = getattr(getattr(x, "dtype", None), "kind", "")
        several = isinstance(x, list | tuple) or kind in ("O", "U")
        items = list(x) if several else [x]
        if several and items and isinstance(items[0], int | float):
            raise RequestError(
                f"this is a list of {len(items)} numbers, expected paths or arrays: use "
                "numpy.array(samples, 'float32')."
            )
        found = self._means(self._patches(items, sample_rate), read)
        return found if several else found[0]

    def _patches(
        self, items: Iterable[Music], sample_rate: int | None = None
    ) -> Iterator[CutMusic]:
        return (windows.stream_cut(self.pieces(item, sample_rate), self.config) for item in items)

    def _pooled(self, batch: EncodedWindows) -> Tensor:
        return pooling.window_embeddings(
            self.model, self.config, batch.layers, batch.n_new_frames, batch.patches
        )

    def _predicted(self, batch: EncodedWindows) -> Tensor:
        head, task = self._require_head()
        valid = batch.n_new_frames > 0
        return tasks.activate(
            task, head(pooling.pool(batch.layers[-1], valid, self.config.finetune.pooling))
        )

    def _means(self, music: Iterable[CutMusic], read: Read) -> np.ndarray:
        """Mean over the windows of each piece of music of their vectors: (n, E)."""
        means = Means()
        for batch in encode_windows(self.model, self.config, music):
            with torch.inference_mode():
                means.add(batch.pieces, read(batch))
        if not means.sums:
            raise RequestError(
                "there is no music here, expected at least one file, array or log-mel."
            )
        return means.result()

    @torch.inference_mode()
    def reconstruct(self, log_mel: Tensor, masked: np.ndarray) -> tuple[Tensor, Tensor]:
        """Predict masked patches of one sequence.

        Parameters
        ----------
        log_mel : Tensor, shape (M, T)
            Its first N patches are used, at most those of a window. The last patch of a short one
            is anchored to its end.
        masked : ndarray, shape (N,), bool
            Patches to predict.

        Returns
        -------
        patches, reconstructed : Tensor, shape (N, M, T)
            Mel bands.
        """
        log_mel = windows.require_log_mel(log_mel, self.config)
        patches = windows.cut_windows(log_mel, self.config)[0][: len(masked)]  # (N, 1, M, T)
        if len(patches) < len(masked):
            raise RequestError(
                f"the mask is of {len(masked)} patches, but the first window of this log-mel has "
                f"{len(patches)}: shorten the mask."
            )
        mask = torch.from_numpy(masked)[None].to(self.device)
        batch = patches[None].to(next(self.model.parameters()))
        reconstructed = self.model.reconstruct(batch, mask=mask)[0].cpu()
        return self.model.mel(patches)[:, 0], reconstructed[:, 0]


def _arrays(part: nn.Module) -> Arrays:
    return {name: value.cpu().numpy() for name, value in part.state_dict().items()}


def _rebuilt(
    config: Config, weights: Arrays, head_weights: Arrays | None, task: Task | None, device: str
) -> Embedder:
    def with_weights(part: nn.Module, arrays: Arrays) -> Any:
        part.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return part

    model, head = with_weights(Patchifier(config), weights), None
    if head_weights is not None and task is not None:
        head = with_weights(Head(config.model.embed_dim, len(task.names)), head_weights)
    return Embedder(model, config, head=head, task=task, device=device)

"""From a file, a waveform or a log-mel to an embedding: enter where your data is."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from patchifier import (
    devices,
    estimates,
    head_files,
    heads,
    inputs,
    model_folder,
    spectrogram,
    weights,
    windows,
)
from patchifier.config import (
    DESCRIPTORS_VERSION,
    Config,
    RequestError,
    digest,
    identity_form,
)
from patchifier.inputs import Music
from patchifier.model_folder import OnnxNetwork
from patchifier.tasks import Task
from patchifier.windows import Batch, CutMusic, Encoded, Means

Read = Callable[[Encoded], np.ndarray]  # what is taken of encoded windows: (B, E)


class Network(Protocol):
    """What an Embedder needs of a network.

    :class:`patchifier.model_folder.OnnxNetwork` is one without torch,
    :class:`patchifier.nn.encode.TorchNetwork` one of torch.
    """

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""

    @property
    def weights_hash(self) -> str:
        """Hash of every tensor of the model."""

    def encode(self, batch: Batch) -> Encoded:
        """Vectors of windows."""

    def reconstruct(self, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mel bands (N, n_mels, W) of patches (N, 1, M, W); `mask` (N,) is True where masked."""


def load(path: str | Path | None = None, *, device: str = "cpu") -> "Embedder":
    """Load a model.

    Parameters
    ----------
    path : str or Path
        By default "patchifier-base", which comes with the package. Else another bundled model, such
        as "patchifier-paper" (a folder of that name is "./patchifier-paper"), a model folder, as
        training writes it, a head of the package, such as "drums", the folder of a head, or,
        downloaded, "hf://owner/name" or "hf://owner/name@revision".
    device : str
        "cpu", "cuda", "cuda:1", "mps", or "auto", which is the best available. On "cuda" the model
        runs by ONNX Runtime where onnxruntime-gpu is installed, which the authors could test with a
        stand-in only, else by torch. The log-mel is computed on the CPU.

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
    if place := head_files.find(path):
        head = heads.read(place)
        return load(head.model, device=device).with_head(head)
    folder = model_folder.read(path)
    if device == "auto":
        return _load_best(folder)
    return _load_on(folder, device)


def load_to_draw(path: str | Path | None = None) -> "Embedder":
    """Load a model for :meth:`Embedder.reconstruct`, on the CPU.

    By torch, if that is there and the folder has no graph of the reconstruction.
    """
    if place := head_files.find(path):
        return load_to_draw(heads.read(place).model)
    folder = model_folder.read(path)
    if folder.has_reconstruct_graph or not _has_torch():
        return _load_on(folder, "cpu")
    return _load_with_torch(folder, "cpu")


def _load_best(folder: model_folder.ModelFolder) -> "Embedder":
    """A model on the best device that is there."""
    if folder.has_graph and devices.serves("cuda"):
        with contextlib.suppress(devices.DeviceError):
            return _load_with_onnx(folder, "cuda")
    if not _has_torch():
        return _load_on(folder, "cpu")
    from patchifier.checkpoint import find_device

    return _load_on(folder, find_device("auto"))


def _load_on(folder: model_folder.ModelFolder, device: str) -> "Embedder":
    """A model on a device, by ONNX Runtime if it can, else by torch."""
    if folder.has_graph and devices.serves(device):
        try:
            return _load_with_onnx(folder, device)
        except devices.DeviceError:
            if not _has_torch():
                raise
    return _load_with_torch(folder, device)


def _load_with_onnx(folder: model_folder.ModelFolder, device: str) -> "Embedder":
    """Embedder of a model folder that runs its graph in ONNX Runtime."""
    return Embedder(OnnxNetwork(folder, device=device), folder.config, folder.task)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _load_with_torch(folder: model_folder.ModelFolder, device: str) -> "Embedder":
    """A model on another device, or one without a graph."""
    if not _has_torch():
        why = f"device {device!r}" if folder.has_graph else "a model folder without graph.onnx"
        raise RequestError(
            f"{folder.path}: {why} needs torch: pip install 'patchifier[train]'. "
            "'patchifier export FOLDER --graphs' writes graph.onnx where torch is."
        )
    from patchifier.checkpoint import load_embedder

    return load_embedder(folder.path, device=device)


@dataclass(frozen=True)
class Embedding:
    """Vectors (k, E) float32 over time, from `start_s` to `end_s` (k,) each, in seconds.

    Of predictions of a head that can doubt, `sure` (k,) says where it answers.

    Examples
    --------
    >>> found = patchifier.load("patchifier-paper").embed_windows("music/one.ogg", window_s=10.0)
    >>> found.vectors.shape, found.start_s.round(1).tolist()
    ((2, 512), [0.0, 10.0])
    """

    vectors: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    sure: np.ndarray | None = None


class Embedder:
    """A model with the settings that turn music into vectors.

    Parameters
    ----------
    network : Network
        What encodes windows.
    config : Config
        What it was made with. ``config.embed`` says how a sequence becomes a vector.
    task : Task
        Of a fine-tuned model.
    head : Head
        Predicts from an embedding, in place of a head inside the network.

    Notes
    -----
    Music longer than the trained sequence is cut into windows of trained length, which start every
    ``hop_patches`` patches, the last one anchored to the end; the embedding is the mean of their
    vectors. Silent patches are left out where the config has ``embed.silence_db``. Padding is
    masked, so a vector does not depend on its batch.

    Examples
    --------
    >>> model = patchifier.load("patchifier-paper")
    >>> model
    <Embedder: vectors of 512 numbers, 8,291,793 parameters>
    >>> model.embed("music/one.ogg").shape, model.embed_patches("music/one.ogg").vectors.shape
    ((512,), (27, 256))
    >>> round(model.tempo("music/one.ogg").bpm), model.log_mel("music/one.ogg").shape
    (99, (64, 862))
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        task: Task | None = None,
        *,
        head: heads.Head | None = None,
    ) -> None:
        self.network, self.config, self.task, self.head = network, config, task, head

    def __repr__(self) -> str:
        """Length of a vector and number of parameters."""
        parameters = f"{self.network.parameter_count:,} parameters"
        return f"<Embedder: vectors of {self.size} numbers, {parameters}>"

    @property
    def size(self) -> int:
        """Length E of an embedding."""
        return self.config.embedding_size

    @property
    def slices(self) -> dict[str, slice]:
        """Slices of an embedding: "similarity" if it has one, "layers", then each summary."""
        return self.config.embedding_slices

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights and of all settings that an embedding depends on.

        Vectors with the same identity can be compared.
        """
        config, values = self.config, identity_form(self.config)
        sections = [values[name] for name in ("spectrogram", "model", "embed")]
        lengths = config.pretrain.n_patches, config.pretrain.stage_two_patches
        version = [DESCRIPTORS_VERSION] if config.embed.summaries else []
        return digest(*sections, *lengths, self.network.weights_hash, *version)

    def with_head(self, head: heads.Head) -> "Embedder":
        """Return this model with a head on its embeddings.

        Raises
        ------
        RequestError
            If the head was trained on vectors of another model or of other settings.
        """
        if (head.identity, head.size) != (self.identity, self.size):
            raise RequestError(
                f"the head was trained on vectors of another model than {head.model}, or of other "
                "settings: train it again on vectors of this one."
            )
        return Embedder(self.network, self.config, Task(head.kind, head.names), head=head)

    def embed(self, x: Music | Sequence[Music], sample_rate: int | None = None) -> np.ndarray:
        """Embed music.

        Parameters
        ----------
        x : str, Path, bytes, open file, or array (S,) or (channels, S); a list or iterator of these
            Audio files, or samples at `sample_rate`: floats in [-1, 1] (overshoot passes), or
            integers of 8, 16 or 32 bits, which are scaled. A file is read in blocks, so memory does
            not grow with its length.
        sample_rate : int
            Of arrays, in Hz. Files know their own.

        Returns
        -------
        numpy.ndarray, shape (E,), or (n, E) for a list; float32

        Raises
        ------
        RequestError
            For a file that cannot be read, an array without a rate, floats at the scale of
            integers, NaN, channels last, or more than 24 channels.

        Examples
        --------
        >>> model = patchifier.load()
        >>> model.embed("music/one.ogg").shape == (model.size,)
        True
        >>> samples = np.zeros(44_100, np.float32)
        >>> model.embed([samples, samples], 44_100).shape == (2, model.size)
        True
        """
        return self._each(x, sample_rate, _vectors)

    def predict(self, x: Music | Sequence[Music], sample_rate: int | None = None) -> np.ndarray:
        """Predict with a fine-tuned model: probabilities or values, in the order of ``task.names``.

        Parameters
        ----------
        x, sample_rate
            As for :meth:`embed`, which also names the errors. A model without a head is refused.

        Returns
        -------
        numpy.ndarray, shape (C,), or (n, C) for a list; float32
            Mean over windows, as in the test of the model. Whether a head of the package answers:
            ``model.head.sure(model.embed(x))``, or :meth:`predict_windows`.
        """
        self.require_task()
        if self.head:
            return self.head.probabilities(self._each(x, sample_rate, _vectors))
        return self._each(x, sample_rate, _predictions)

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

        `start_s` and `end_s` select a part of a file. Times count from `start_s`.
        """
        self.require_task()
        pieces = self.pieces(x, sample_rate, start_s=start_s, end_s=end_s)
        if self.head:
            found = self._stretches(pieces, window_s, hop_s, _vectors)
            probabilities = self.head.probabilities(found.vectors)
            sure = self.head.sure(found.vectors) if self.head.known else None
            return Embedding(probabilities, found.start_s, found.end_s, sure)
        return self._stretches(pieces, window_s, hop_s, _predictions)

    def require_task(self) -> Task:
        """Return the task of a fine-tuned model; a model without a head is refused."""
        if self.task is not None:
            return self.task
        raise RequestError(
            "this model has no head, expected one from 'patchifier finetune', such as "
            f"RUN/full/model, a head of the package ({', '.join(weights.heads()) or 'none here'}), "
            "or a head that the page of 'patchifier app' saved."
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
        return self._stretches(self.pieces(x, sample_rate), window_s, hop_s, _vectors)

    def _stretches(
        self, pieces: Iterable[np.ndarray], window_s: float, hop_s: float | None, read: Read
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

        def counted() -> Iterator[np.ndarray]:
            nonlocal frames
            for piece in self.pieces(x, sample_rate):
                frames += piece.shape[-1]
                yield piece

        for batch in windows.batches([windows.stream_cut(counted(), config)], config):
            vectors = self.network.encode(batch).patch_vectors  # (B, N, E')
            for first, row, kept in zip(batch.first, vectors, batch.n_new_frames > 0, strict=True):
                means.add(range(first, first + int(kept.sum())), row[kept])
        length, frame_s = config.model.patch_frames, config.spectrogram.frame_s
        starts = np.array(spectrogram.patch_starts(frames, length=length, tail="anchor"))
        ends = np.minimum(starts + length, frames)
        return Embedding(means.result(), starts * frame_s, ends * frame_s)

    def tempo(self, x: Music, sample_rate: int | None = None) -> estimates.Tempo:
        """Estimate the tempo of one piece of music; see :func:`patchifier.estimates.tempo`.

        Examples
        --------
        >>> clicks = np.zeros(10 * 22_050, np.float32)
        >>> clicks[:: 22_050 // 2] = 0.5
        >>> round(patchifier.load().tempo(clicks, 22_050).bpm)
        120
        """
        config = self.config.spectrogram
        return estimates.tempo(estimates.features(self.pieces(x, sample_rate), config))

    def key(self, x: Music, sample_rate: int | None = None) -> estimates.Key:
        """Estimate the key of one piece of music; see :func:`patchifier.estimates.key`.

        Raises
        ------
        RequestError
            Also if the model's log-mel has no pitch bands.

        Examples
        --------
        >>> patchifier.load().key(np.zeros(10 * 22_050, np.float32), 22_050).name is None
        True
        """
        config = self.config.spectrogram
        estimates.require_pitch_bands(config)
        return estimates.key(estimates.features(self.pieces(x, sample_rate), config))

    def log_mel(self, x: Music, sample_rate: int | None = None) -> np.ndarray:
        """Log-mel (M, T) of a file or of samples, with this model's settings.

        Examples
        --------
        >>> patchifier.load("patchifier-paper").log_mel(np.zeros(22_050, np.float32), 22_050).shape
        (64, 44)
        """
        return np.concatenate(list(self.pieces(x, sample_rate)), axis=-1)

    def pieces(
        self,
        x: Music,
        sample_rate: int | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield the log-mel of a file, of a part of it, or of samples, in pieces (M, T').

        See :func:`patchifier.inputs.log_mel`.
        """
        return inputs.log_mel(x, sample_rate, self.config, start_s=start_s, end_s=end_s)

    def embed_log_mels(self, log_mels: Iterable[np.ndarray]) -> np.ndarray:
        """Embed log-mels (M, T) of any lengths: (n, E) float32."""
        return self._means(self._patches(iter([log_mel]) for log_mel in log_mels), _vectors)

    def embed_sequences(self, sequences: Iterable[np.ndarray]) -> np.ndarray:
        """Embed sequences of patches (N, 1, M, T) that touch, of any lengths: (n, E) float32.

        :func:`patchifier.spectrogram.cut` makes them of whole patches. If the last patch is
        anchored to the end, the frames that it repeats count twice in summaries of rhythm;
        :meth:`embed_log_mels` avoids it.
        """
        items = windows.require_sequences(sequences, self.config)
        cuts = [[(patch, patch.shape[-1]) for patch in patches] for patches in items]
        return self._means(cuts, _vectors)

    def _each(self, x: Any, sample_rate: int | None, read: Read) -> np.ndarray:
        """Embed or predict for one piece of music, or for each of several."""
        items, several = inputs.split(x)
        found = self._means(self._patches(items, sample_rate), read)
        return found if several else found[0]

    def _patches(
        self, items: Iterable[Music], sample_rate: int | None = None
    ) -> Iterator[CutMusic]:
        return (windows.stream_cut(self.pieces(item, sample_rate), self.config) for item in items)

    def _means(self, music: Iterable[CutMusic], read: Read) -> np.ndarray:
        """Mean over the windows of each piece of music of their vectors: (n, E)."""
        means = Means()
        sounding = (windows.without_silence(piece, self.config) for piece in music)
        for batch in windows.batches(sounding, self.config):
            means.add(batch.pieces, read(self.network.encode(batch)))
        if not means.sums:
            raise RequestError(
                "there is no music here, expected at least one file, array or log-mel."
            )
        return means.result()

    def reconstruct(self, log_mel: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict masked patches of one sequence.

        Parameters
        ----------
        log_mel : ndarray, shape (M, T)
            Its first N patches are used, at most those of a window. The last patch of a short one
            is anchored to its end.
        masked : ndarray, shape (N,), bool
            Patches to predict.

        Returns
        -------
        patches, reconstructed : ndarray, shape (N, M, T)
            Mel bands.
        """
        log_mel, masked = windows.require_log_mel(log_mel, self.config), np.asarray(masked, bool)
        if masked.ndim != 1:
            raise RequestError(f"the mask has shape {masked.shape}, expected (N,).")
        patches = windows.cut_windows(log_mel, self.config)[0][: len(masked)]  # (N, 1, M, T)
        if len(patches) < len(masked):
            raise RequestError(
                f"the mask is of {len(masked)} patches, but the first window of this log-mel has "
                f"{len(patches)}: shorten the mask."
            )
        patches = patches.astype(np.float32, copy=False)
        reconstructed = self.network.reconstruct(patches, masked)
        return patches[:, 0, : self.config.spectrogram.n_mels], reconstructed


def _vectors(encoded: Encoded) -> np.ndarray:
    return encoded.vectors


def _predictions(encoded: Encoded) -> np.ndarray:
    assert encoded.predictions is not None  # the task was required
    return encoded.predictions

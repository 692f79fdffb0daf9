"""From a file, a waveform or a log-mel to an embedding: enter where your data is."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import audio, checkpoint, spectrogram, tasks
from patchifier.config import Config, RequestError, digest, without_added
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Head, Patchifier
from patchifier.nn.pooling import (
    embedding_size,
    parts_of,
    pool_one,
    read_out,
    require_embed,
    require_readout,
    summaries_version,
)
from patchifier.tasks import Task
from patchifier.windows import (
    cut_windows,
    in_batches,
    pad_windows,
    require_log_mel,
    stream_cut,
    stream_stretches,
    stream_windows,
    stretch_frames,
)

Read = Callable[
    [Sequence[Tensor], Tensor, Tensor | None], Tensor
]  # layers, new frames of each patch (B, N), and patches -> (B, E)
Cut = Iterable[
    tuple[Tensor, int]
]  # patches (1, M, W) of one piece of music, each with how many of its frames are new
Arrays = dict[str, np.ndarray]  # weights by name
BATCH = 32  # windows at once: 4 MB in a feed-forward layer of the paper's setting, and so is
PATCHES = 128  # patches at once, in the extractor's first map
READOUT_CLIPS = 4096  # by which embeddings are standardised: eight for each of 512 numbers that become components


def load(path: str | Path | None = None, *, device: str = "cpu") -> "Embedder":
    """Load a model.

    Parameters
    ----------
    path : str or Path
        By default "patchifier-base", which comes with the package. The name of another bundled model, such as "patchifier-paper" (a folder
        of that name here is "./patchifier-paper"); a model folder, as training writes it; or one of a hub: "hf://owner/name",
        "hf://owner/name@revision". Nothing is downloaded but by the last.
    device : str
        "cpu", "cuda", "cuda:1", "mps"; "auto" is the best that is there.

    Returns
    -------
    Embedder

    Raises
    ------
    RequestError
        If there is no such model, or no such device.
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
    """A model together with the settings that turn music into its vectors.

    Parameters
    ----------
    model : Patchifier
        Put into evaluation mode.
    config : Config
        What it was made with; ``config.embed`` decides how a sequence becomes a vector.
    head, task : Head, Task
        Of a fine-tuned model.
    device : str
        Where to compute.

    Notes
    -----
    Sound longer than the trained sequence is cut into windows of trained length that start every ``hop_patches`` patches, the last
    one anchored to the end; each gives a vector, and their mean is the embedding. So no position is used that was never trained. A patch is
    extracted once, however many windows it is in. Nothing depends on what else is in the batch: padding is masked everywhere.
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
        require_embed(config)
        model, self.config = checkpoint.without_other_statistics(model, config)
        self.model, self.head, self.task = accelerate(model.to(device).eval()), head, task
        self.device = torch.device(device)
        if head is not None:
            head.to(device).eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as plain arrays: no memory is shared, and the device is found anew."""
        parts = (self.model, self.head)
        arrays = [
            {name: value.cpu().numpy() for name, value in part.state_dict().items()}
            if part is not None
            else None
            for part in parts
        ]
        return _rebuilt, (self.config, *arrays, self.task, str(self.device))

    def __repr__(self) -> str:
        """In a line: how long its vectors are, how large it is and where it computes."""
        return f"<Embedder: vectors of {self.size} numbers, {self.model.parameter_count():,} parameters, on {self.device}>"

    @property
    def size(self) -> int:
        """Length E of an embedding."""
        return embedding_size(self.config)

    @property
    def parts(self) -> dict[str, slice]:
        """Where in an embedding what stands: "layers", which are learnt, then each of ``config.embed.summaries`` by its name."""
        return parts_of(self.config)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights and of every setting that decides an embedding: vectors with the same one can be compared."""
        config, values = self.config, without_added(self.config)
        settings = (
            values["spectrogram"],
            values["model"],
            values["embed"],
            config.pretrain.patches,
            config.pretrain.stage_two_patches,
        )
        return digest(*settings, checkpoint.weights_hash(self.model), *summaries_version(config))

    def embed(self, x: Any, sample_rate: int | None = None) -> np.ndarray:
        """Embed music.

        Parameters
        ----------
        x : str, Path, array of float (S,) or (channels, S), a list of these, or an array of paths
            Audio files, or samples in [-1, 1] (overshoot passes) at `sample_rate`. A file is read as it goes: memory does not grow with its length.
        sample_rate : int
            Of arrays, in Hz. Files know their own.

        Returns
        -------
        numpy.ndarray, shape (E,), or (n, E) for a list; float32

        Raises
        ------
        RequestError
            For a file that cannot be read, an array without a rate, integers or floats at their scale, NaN, or channels last.
        """
        return self._each(x, sample_rate, self._pooled)

    def predict(self, x: Any, sample_rate: int | None = None) -> np.ndarray:
        """Ask a fine-tuned model: probabilities of classes or tags, or values, in the order of ``task.names``.

        Parameters
        ----------
        x, sample_rate
            As for :meth:`embed`.

        Returns
        -------
        numpy.ndarray, shape (C,), or (n, C) for a list; float32
            Mean over windows, as it was when the model was tested.

        Raises
        ------
        RequestError
            If the model has no head; and as :meth:`embed` does.
        """
        self._require_head()
        return self._each(x, sample_rate, self._asked)

    def predict_windows(
        self,
        x: Any,
        sample_rate: int | None = None,
        *,
        window_s: float,
        hop_s: float | None = None,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Embedding:
        """Ask a fine-tuned model about stretches of music; arguments as for :meth:`embed_windows`, rows as of :meth:`predict`.

        Of a file, the part from `start_s` to `end_s`; times count from its start.
        """
        self._require_head()
        return self._stretches(
            self.pieces(x, sample_rate, start_s=start_s, end_s=end_s), window_s, hop_s, self._asked
        )

    def require_task(self) -> Task:
        """What a fine-tuned model answers; an error for one without a head."""
        return self._require_head()[1]

    def _require_head(self) -> tuple[Head, Task]:
        if self.head is None or self.task is None:
            raise RequestError(
                "this model has no head, expected one from 'patchifier finetune', such as RUN/full/model."
            )
        return self.head, self.task

    def embed_windows(
        self, x: Any, sample_rate: int | None = None, *, window_s: float, hop_s: float | None = None
    ) -> Embedding:
        """Embed stretches of music, each as if it were all there is, but for half an FFT window of sound around it.

        Parameters
        ----------
        x, sample_rate
            One piece of music, as for :meth:`embed`.
        window_s, hop_s : float
            Length of a stretch and time between the starts of two, in seconds, rounded to frames; they touch by default. The last one is
            anchored to the end, as long as any: it may repeat nearly all of the one before.

        Returns
        -------
        Embedding
            At least one row; one that is shorter, if the music is.
        """
        return self._stretches(self.pieces(x, sample_rate), window_s, hop_s, self._pooled)

    def _stretches(
        self, pieces: Iterable[Tensor], window_s: float, hop_s: float | None, read: Read
    ) -> Embedding:
        frame_s = self.config.spectrogram.frame_s
        length, hop = stretch_frames(window_s, hop_s, self.config.spectrogram)
        spans: list[tuple[int, int]] = []

        def stretches() -> Iterator[Cut]:
            for first, log_mel in stream_stretches(pieces, length=length, hop=hop):
                spans.append((first, first + log_mel.shape[-1]))
                yield stream_cut([log_mel], self.config)

        vectors = self._means(stretches(), read)
        return Embedding(vectors, *(np.array(spans).T * frame_s))

    def embed_patches(self, x: Any, sample_rate: int | None = None) -> Embedding:
        """Embed every patch in its context: the mean over the windows it is in.

        Parameters
        ----------
        x, sample_rate
            One piece of music, as for :meth:`embed`.

        Returns
        -------
        Embedding
            A row of the chosen layers side by side, ``width * len(layers)`` numbers, for each patch; the last one is anchored to the end.
        """
        config, sums, counts, frames = self.config, dict[int, Tensor](), Counter[int](), 0

        def counted() -> Iterator[Tensor]:
            nonlocal frames
            for piece in self.pieces(x, sample_rate):
                frames += piece.shape[-1]
                yield piece

        for owners, layers, new, _ in self._encoded([stream_cut(counted(), config)]):
            vectors = torch.cat(
                [layers[layer][:, -new.shape[1] :] for layer in config.embed.layers], dim=-1
            ).cpu()  # (B, N, E')
            for (_, first), row, present in zip(owners, vectors, new.cpu() > 0, strict=True):
                for place, vector in enumerate(row[present], first):
                    sums[place] = sums.get(place, 0) + vector.double()
                    counts[place] += 1
        starts = np.array(
            spectrogram.patch_starts(frames, length=config.model.frames, tail="anchor")
        )
        ends = np.minimum(starts + config.model.frames, frames)
        return Embedding(
            _over(sums, counts),
            starts * config.spectrogram.frame_s,
            ends * config.spectrogram.frame_s,
        )

    def log_mel(self, x: Any, sample_rate: int | None = None) -> Tensor:
        """Log-mel (M, T) of a file or of samples, with this model's settings."""
        return torch.cat(list(self.pieces(x, sample_rate)), dim=-1)

    def pieces(
        self,
        x: Any,
        sample_rate: int | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Iterator[Tensor]:
        """Log-mel of a file, or of the part of it that is meant, or of samples, as it arrives: (M, T') each. An iterator of such pieces passes."""
        config = self.config.spectrogram
        if (start_s, end_s) != (0.0, None) and not isinstance(x, str | Path):
            raise RequestError(
                f"start_s and end_s are of files, but x is of type {type(x).__name__}: give the part that is meant."
            )
        if isinstance(x, Iterator):
            yield from (require_log_mel(piece, self.config) for piece in x)
        elif isinstance(x, str | Path):
            yield from spectrogram.stream_log_mel(
                audio.blocks(x, sample_rate=config.sample_rate, start_s=start_s, end_s=end_s),
                config,
            )
        else:
            yield spectrogram.log_mel(
                audio.as_waveform(x, sample_rate, target_rate=config.sample_rate), config
            )

    def embed_log_mels(self, log_mels: Iterable[Tensor]) -> np.ndarray:
        """Embed log-mels (M, T) of any lengths: (n, E) float32."""
        return self._means(self._patches(iter([log_mel]) for log_mel in log_mels), self._pooled)

    def embed_sequences(self, sequences: Iterable[Tensor]) -> np.ndarray:
        """Embed sequences of patches (N, 1, M, W) that touch, of any lengths: (n, E) float32.

        That is what :func:`patchifier.spectrogram.cut` gives of whole patches. Of a last one that it anchored to the end, nobody can tell here
        which frames it repeats: summaries of rhythm hear them twice, while :meth:`embed_log_mels` does not.
        """
        items = list(sequences)
        shape = (1, self.config.model.bands, self.config.model.frames)
        for number, patches in enumerate(items):
            if (
                not isinstance(patches, Tensor)
                or not len(patches)
                or tuple(patches.shape[1:]) != shape
            ):
                given = (
                    f"has shape {tuple(patches.shape)}"
                    if isinstance(patches, Tensor)
                    else f"is of type {type(patches).__name__}"
                )
                raise RequestError(
                    f"sequence {number} {given}, expected a tensor (N, {', '.join(map(str, shape))}) with N of at least 1."
                )
        return self._means(
            [[(patch, patch.shape[-1]) for patch in patches] for patches in items], self._pooled
        )

    def predict_log_mels(self, log_mels: Iterable[Tensor]) -> np.ndarray:
        """Ask a fine-tuned model about log-mels (M, T) of any lengths: (n, C) float32."""
        self._require_head()
        return self._means(self._patches(iter([log_mel]) for log_mel in log_mels), self._asked)

    def _each(self, x: Any, sample_rate: int | None, read: Read) -> np.ndarray:
        """What is read off one piece of music, or off each of a list or of an array of paths."""
        several = isinstance(x, list | tuple) or getattr(getattr(x, "dtype", None), "kind", "") in (
            "O",
            "U",
        )
        items = list(x) if several else [x]
        if several and items and isinstance(items[0], int | float):
            raise RequestError(
                f"this is a list of {len(items)} numbers, expected paths or arrays: use numpy.array(samples, 'float32')."
            )
        found = self._means(self._patches(items, sample_rate), read)
        return found if several else found[0]

    def _patches(self, items: Iterable[Any], sample_rate: int | None = None) -> Iterator[Cut]:
        return (stream_cut(self.pieces(item, sample_rate), self.config) for item in items)

    def _pooled(self, layers: Sequence[Tensor], new: Tensor, patches: Tensor | None) -> Tensor:
        return read_out(self.model, self.config, layers, new, patches)

    def _asked(self, layers: Sequence[Tensor], new: Tensor, patches: Tensor | None) -> Tensor:
        head, task = self._require_head()
        return tasks.activate(
            task, head(pool_one(layers[-1], new > 0, self.config.finetune.readout))
        )

    def _means(self, items: Iterable[Cut], read: Read) -> np.ndarray:
        """Mean of what is read off the windows of each item, which comes as patches: (n, E)."""
        sums, counts = dict[int, Tensor](), Counter[int]()
        for owners, layers, new, patches in self._encoded(items):
            with torch.inference_mode():
                vectors = read(layers, new, patches).cpu().double()
            for (number, _), vector in zip(owners, vectors, strict=True):
                sums[number] = sums.get(number, 0) + vector
                counts[number] += 1
        if not sums:
            raise RequestError(
                "there is no music here, expected at least one file, array or log-mel."
            )
        return _over(sums, counts)

    def _encoded(
        self, items: Iterable[Cut]
    ) -> Iterator[tuple[list[tuple[int, int]], list[Tensor], Tensor, Tensor | None]]:
        """Layers of the windows of all items, some at a time: item and first patch of each window, layers, new frames of each patch, and patches.

        Each patch is extracted once, however many windows it is in; patches, and windows, of several items share a batch. Patches travel
        on behind their vectors only where summaries are made of them.
        """
        width = self.config.model.width
        patches = ((number, *cut) for number, item in enumerate(items) for cut in item)
        vectors = (
            (number, vector)
            for some in in_batches(patches, PATCHES)
            for (number, *_), vector in zip(some, self._extract(some), strict=True)
        )
        windows = (
            (number, first, window)
            for number, sequence in itertools.groupby(vectors, key=lambda owned: owned[0])
            for first, window in stream_windows((vector for _, vector in sequence), self.config)
        )
        for some in in_batches(windows, BATCH):
            sequences, present = pad_windows([window for *_, window in some], 0.0)
            with torch.inference_mode():
                vectors_of, new, kept = sequences.tensor_split(
                    [width, width + 1], dim=-1
                )  # (B, N, D), (B, N, 1), (B, N, M W)
                layers = [vectors_of, *self.model.bottleneck(vectors_of, valid=present)]
                patches_of = (
                    kept.unflatten(-1, (-1, self.config.model.frames))
                    if self.config.embed.summaries
                    else None
                )  # (B, N, M, W)
            yield (
                [(number, first) for number, first, _ in some],
                layers,
                new[..., 0].long(),
                patches_of,
            )

    @torch.inference_mode()
    def _extract(self, patches: Sequence[tuple[int, Tensor, int]]) -> Tensor:
        """Vectors (P, D) of patches, behind each how many of its frames are new, and, where summaries want it, the patch itself."""
        stacked = torch.stack([patch for _, patch, _ in patches]).to(
            next(self.model.parameters())
        )  # (P, 1, M, W)
        vectors = self.model.extractor(stacked)  # (P, D)
        new = vectors.new_tensor([[frames] for *_, frames in patches])
        return torch.cat(
            [vectors, new, *([stacked.flatten(1)] if self.config.embed.summaries else [])], dim=1
        )

    @torch.inference_mode()
    def reconstruct(self, log_mel: Tensor, masked: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fill in masked patches of one sequence.

        Parameters
        ----------
        log_mel : Tensor, shape (M, T)
            Its first N patches are used, at most as many as a window has; the last patch of a short one is anchored to its end.
        masked : ndarray, shape (N,), bool
            Which to hide.

        Returns
        -------
        patches, reconstructed : Tensor, shape (N, M, W), of mel bands

        Raises
        ------
        RequestError
            If the mask is longer than that, or the log-mel is none.
        """
        patches = cut_windows(require_log_mel(log_mel, self.config), self.config)[0][
            : len(masked)
        ]  # (N, 1, M, W)
        if len(patches) < len(masked):
            raise RequestError(
                f"the mask is of {len(masked)} patches, but the first window of this log-mel has {len(patches)}: shorten the mask."
            )
        where = torch.from_numpy(masked)[None].to(self.device)
        filled = self.model.reconstruct(
            patches[None].to(next(self.model.parameters())), mask=where
        )[0].cpu()
        return self.model.mel(patches)[:, 0], filled[:, 0]


def _over(sums: dict[int, Tensor], counts: Counter[int]) -> np.ndarray:
    return (
        (torch.stack(list(sums.values())) / torch.tensor(list(counts.values()))[:, None])
        .float()
        .numpy()
    )


def _rebuilt(
    config: Config, weights: Arrays, head_weights: Arrays | None, task: Task | None, device: str
) -> Embedder:
    def filled(part: nn.Module, arrays: Arrays) -> Any:
        part.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return part

    head = (
        None
        if head_weights is None or task is None
        else filled(Head(config.model.width, len(task.names)), head_weights)
    )
    return Embedder(
        filled(Patchifier(config.model), weights), config, head=head, task=task, device=device
    )


def measure_readout(model: Patchifier, config: Config, log_mels: Iterable[Tensor]) -> None:
    """Standardise embeddings by those of training clips, given as log-mels (M, T); nothing to do for a model that does not.

    Raises
    ------
    RequestError
        If ``model.readout`` is not the length of an embedding.
    """
    if model.readout is None:
        return
    require_readout(config)
    raw = dataclasses.replace(
        config, model=dataclasses.replace(config.model, readout=0, components=(0, 0))
    )
    readout, model.readout = model.readout, None  # what is measured is not standardised yet
    readout.fit(
        torch.from_numpy(Embedder(model, raw).embed_log_mels(log_mels)).to(readout.mean.device)
    )
    readout.settings, model.readout = config.embed.numbers, readout

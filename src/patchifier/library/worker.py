"""From clips to rows in one process: decode, compute log-mels and run the model, on one thread.

A long file is embedded as it is decoded, so that memory does not grow with its length; shorter ones
are collected and share batches.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from patchifier import audio, jobs, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.containers import payload_digest
from patchifier.datasets import Clip
from patchifier.embed import Embedder
from patchifier.excerpts import Source, read_each
from patchifier.library.sources import key
from patchifier.library.tags import read_tags
from patchifier.windows import stream_stretches, stretch_frames

TASK_CLIPS = 8
LONG_FRAMES = 2**14  # 6.3 minutes, 4 MB of float32
Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Cut:
    """What a row is about: a file, a window of `window_s` every `hop_s` seconds, or a patch."""

    window_s: float | None = None
    hop_s: float | None = None
    patches: bool = False

    @classmethod
    def checked(
        cls, embedder: Embedder, *, window_s: float | None, hop_s: float | None, patches: bool
    ) -> "Cut":
        """Make one that can be cut, or say why it cannot."""
        if patches and (window_s is not None or hop_s is not None):
            raise RequestError(
                "rows for patches and for windows were requested, expected one of them: drop "
                "--patches or --window_s."
            )
        if hop_s is not None and window_s is None:
            raise RequestError(
                f"hop_s is {hop_s} without a window, expected a length of windows too: add "
                "--window_s SECONDS."
            )
        if window_s is not None:
            stretch_frames(window_s, hop_s, embedder.config.spectrogram)
        return cls(window_s, window_s if hop_s is None else hop_s, patches)

    def size(self, embedder: Embedder) -> int:
        """Numbers in a row's vector."""
        return (
            embedder.config.model.embed_dim * len(embedder.config.embed.layers)
            if self.patches
            else embedder.size
        )


@dataclass(frozen=True)
class FileFacts:
    """What a table says about a file beside its vectors, as it was before it was read."""

    size: int
    mtime_ns: int
    tags: dict[str, str | int | None]
    track_id: str  # digest of its audio

    def columns(self) -> dict[str, str | int | None]:
        """Values of the columns of a table that are about the file."""
        return {
            "size": self.size,
            "mtime_ns": self.mtime_ns,
            "track_id": self.track_id,
            **self.tags,
        }


def file_facts(clip: Clip) -> FileFacts:
    """Read the tags of a clip's file and the digest of its audio; nothing is decoded."""
    state = os.stat(clip.path)
    return _file_facts(clip.path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=TASK_CLIPS)  # clips of one file in a manifest follow each other
def _file_facts(path: str, size: int, mtime_ns: int) -> FileFacts:
    return FileFacts(size, mtime_ns, read_tags(path), payload_digest(path))


@dataclass(frozen=True)
class ClipRows:
    """Rows of one clip, its file as it was before it was read, and how it was decoded."""

    file: FileFacts
    how: audio.Decoding
    spans_s: Spans  # from when to when each row is, in the clip
    levels_db: list[float | None]  # of the loudest mel band in each row
    vectors: np.ndarray  # (k, E) float32


def embed_batch(shared: tuple[Embedder, Cut], clips: Sequence[Clip]) -> list[ClipRows | str]:
    """Embed a batch of :func:`patchifier.jobs.run`."""
    return embed_clips(*shared, clips)


def embed_clips(embedder: Embedder, cut: Cut, clips: Sequence[Clip]) -> list[ClipRows | str]:
    """Embed clips, whose windows share batches: the rows of each, or the reason for none."""

    def decode(number: int, source: Source | None) -> ClipRows | _Short | str:
        return jobs.attempt(clips[number].path, _decode_clip, embedder, cut, clips[number], source)

    mix_lfe = embedder.config.embed.mix_lfe
    decoded = read_each([key(clip) for clip in clips], decode, mix_lfe=mix_lfe)
    short = [found for found in decoded if isinstance(found, _Short)]
    embedded = iter(_short_rows(embedder, cut, short))
    rows = [next(embedded) if isinstance(found, _Short) else found for found in decoded]
    return [_finite(clip.path, found) for clip, found in zip(clips, rows, strict=True)]


def _finite(path: str, found: ClipRows | str) -> ClipRows | str:
    """Rows without NaN and infinity, or the reason for none."""
    if isinstance(found, str) or np.isfinite(found.vectors).all():
        return found
    return f"{path}: the model gives numbers that are not finite for this file."


# --- one clip ---


@dataclass(frozen=True)
class _Short:
    """A decoded clip, which shares a batch with other ones."""

    rows: Callable[[Spans, np.ndarray], ClipRows]
    log_mel: np.ndarray  # (M, T)
    path: str


def _decode_clip(
    embedder: Embedder, cut: Cut, clip: Clip, source: Source | None
) -> ClipRows | _Short:
    """Compute the log-mel of a clip. A long clip is embedded as it is decoded."""
    config, state = embedder.config.spectrogram, os.stat(clip.path)
    how = audio.Decoding(mix_lfe=embedder.config.embed.mix_lfe)
    blocks = audio.blocks(
        clip.path,
        sample_rate=config.sample_rate,
        start_s=clip.start_s,
        end_s=clip.end_s,
        how=how,
        source=source,
    )

    levels = Levels(config)

    def rows(spans_s: Spans, vectors: np.ndarray) -> ClipRows:
        spans_s = spans_s or [(0.0, how.length_s)]
        file = _file_facts(clip.path, state.st_size, state.st_mtime_ns)
        return ClipRows(file, how, spans_s, levels.of(spans_s), vectors)

    pieces = levels.measured(spectrogram.stream_log_mel(blocks, config))
    buffer, frames = list[np.ndarray](), 0
    for piece in pieces:
        buffer.append(piece)
        frames += piece.shape[-1]
        if frames > LONG_FRAMES:
            return rows(*_embed_long(embedder, cut, _emptied(buffer, pieces)))
    return _Short(rows, np.concatenate(buffer, axis=-1), clip.path)


class Levels:
    """Level of the loudest mel band in each frame of a log-mel that passes through.

    They are unknown if the log-mel is relative to the clip's maximum.
    """

    def __init__(self, config: SpectrogramConfig) -> None:
        self.config = config
        self._levels: list[np.ndarray] = []

    def measured(self, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pieces (M, T), measured."""
        for piece in pieces:
            self._levels.append(piece[: self.config.n_mels].max(axis=0))
            yield piece

    def of(self, spans_s: Spans) -> list[float | None]:
        """Levels in dB of parts of the log-mel; None where they are unknown."""
        if self.config.reference != "absolute" or not self._levels:
            return [None] * len(spans_s)
        levels, frame_s = np.concatenate(self._levels), self.config.frame_s
        frames = ((int(start / frame_s), math.ceil(end / frame_s)) for start, end in spans_s)
        parts = (levels[first:last] for first, last in frames)
        return [float(part.max()) / self.config.db_scale if len(part) else None for part in parts]


def _emptied(buffer: list[np.ndarray], rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pieces of the buffer, each released as it is yielded, then the rest."""
    while buffer:
        yield buffer.pop(0)
    yield from rest


def _embed_long(
    embedder: Embedder, cut: Cut, pieces: Iterator[np.ndarray]
) -> tuple[Spans, np.ndarray]:
    """Spans and vectors of a log-mel that arrives in pieces.

    No span, if it is one row about everything.
    """
    if cut.patches:
        found = embedder.embed_patches(pieces)
    elif cut.window_s is not None:
        found = embedder.embed_windows(pieces, window_s=cut.window_s, hop_s=cut.hop_s)
    else:
        return [], embedder.embed(pieces)[None]
    return list(zip(found.start_s.tolist(), found.end_s.tolist(), strict=True)), found.vectors


def _short_rows(embedder: Embedder, cut: Cut, short: Sequence[_Short]) -> list[ClipRows | str]:
    """Rows of decoded clips, embedded together.

    Each alone, where that takes more memory than there is.
    """
    try:
        with jobs.memory_errors():
            found = list(_embed_short(embedder, cut, [one.log_mel for one in short]))
    except MemoryError as error:
        if len(short) == 1:
            return [jobs.skip_reason(short[0].path, error)]
        return [rows for one in short for rows in _short_rows(embedder, cut, [one])]
    return [one.rows(*rows) for one, rows in zip(short, found, strict=True)]


def _embed_short(
    embedder: Embedder, cut: Cut, log_mels: Sequence[np.ndarray]
) -> Iterator[tuple[Spans, np.ndarray]]:
    """Spans and vectors of each log-mel (M, T), as :func:`_embed_long`, in common batches."""
    if cut.patches:  # a file's own windows fill a batch
        yield from (_embed_long(embedder, cut, iter([log_mel])) for log_mel in log_mels)
    elif log_mels:
        stretches = [_stretches(embedder, cut, log_mel) for log_mel in log_mels]
        vectors = embedder.embed_log_mels(stretch for some in stretches for _, stretch in some)
        ends = np.cumsum([len(some) for some in stretches])
        yield from (
            ([span for span, _ in some if span], part)
            for some, part in zip(stretches, np.split(vectors, ends[:-1]), strict=True)
        )


def _stretches(
    embedder: Embedder, cut: Cut, log_mel: np.ndarray
) -> list[tuple[tuple[float, float] | None, np.ndarray]]:
    """Span and log-mel of each window with a row, as :meth:`Embedder.embed_windows` cuts them.

    No span for the whole file.
    """
    if cut.window_s is None or cut.hop_s is None:
        return [(None, log_mel)]
    frame_s = embedder.config.spectrogram.frame_s
    length, hop = stretch_frames(cut.window_s, cut.hop_s, embedder.config.spectrogram)
    cuts = stream_stretches([log_mel], length=length, hop=hop)
    return [
        ((first * frame_s, (first + stretch.shape[-1]) * frame_s), stretch)
        for first, stretch in cuts
    ]

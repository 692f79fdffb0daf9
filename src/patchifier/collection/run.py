"""From what the decoding processes send to rows: the model, in batches across files."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from patchifier.cache import Progress
from patchifier.collection import table
from patchifier.collection.hear import TAGS, Heard
from patchifier.collection.sources import Key, key
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.embed import Embedder
from patchifier.windows import stream_stretches


@dataclass(frozen=True)
class Cut:
    """What a row is about: a file, a stretch of `window_s` every `hop_s` seconds, or a patch."""

    window_s: float | None = None
    hop_s: float | None = None
    patches: bool = False

    @classmethod
    def checked(cls, embedder: Embedder, *, window_s: float | None, hop_s: float | None, patches: bool) -> "Cut":
        """Make one that can be cut, or say why it cannot."""
        if patches and (window_s is not None or hop_s is not None):
            raise RequestError("rows for patches and for windows are both asked for, expected one of them: drop --patches or --window.")
        if hop_s is not None and window_s is None:
            raise RequestError(f"hop_s is {hop_s} without a window, expected a length of windows too: add --window SECONDS.")
        frame_s = embedder.config.spectrogram.frame_s
        for name, value in (("window_s", window_s), ("hop_s", hop_s)):
            if value is not None and not frame_s / 2 < value < float("inf"):
                raise RequestError(f"{name} is {value}, expected at least one frame of {frame_s:.4f} s.")
        return cls(window_s, window_s if hop_s is None else hop_s, patches)

    def size(self, embedder: Embedder) -> int:
        """Numbers in a row's vector."""
        return embedder.config.model.width * len(embedder.config.embed.layers) if self.patches else embedder.size


@dataclass(frozen=True)
class _Rows:
    """Rows of one clip: from when to when each. Its log-mel is let go as soon as it is embedded."""

    clip: Clip
    heard: Heard
    spans_s: list[tuple[float, float]]


def embed_part(
    embedder: Embedder, cut: Cut, answers: Iterable[tuple[Clip, Heard | str]], facts: dict[str, Any]
) -> tuple[pa.Table, list[tuple[Key, int]], list[tuple[Key, str]]]:
    """Embed some clips.

    Returns
    -------
    rows : Table
        Of all clips, in their order.
    counted : list of (Key, int)
        How many rows each clip has.
    skipped : list of (Key, str)
        Clips without any, with the reason.
    """
    skipped: list[tuple[Key, str]] = []
    done: list[_Rows] = []

    def heard() -> Iterator[tuple[_Rows, Tensor]]:
        for clip, answer in answers:
            if isinstance(answer, str):
                skipped.append((key(clip), answer))
            else:
                done.append(_Rows(clip, replace(answer, log_mel=""), []))
                with answer.opened(embedder.config.spectrogram.bands) as log_mel:
                    yield done[-1], log_mel

    vectors = _patch_vectors(embedder, heard()) if cut.patches else _vectors(embedder, cut, heard())
    columns: dict[str, list[Any]] = {name: [] for name in ("path", "start_s", "end_s", "size", "mtime_ns", *TAGS)}
    for rows in done:
        for start_s, end_s in rows.spans_s:
            values = (rows.clip.path, rows.clip.start_s + start_s, rows.clip.start_s + end_s, rows.heard.size, rows.heard.mtime_ns)
            for name, value in zip(columns, (*values, *rows.heard.tags.values()), strict=True):
                columns[name].append(value)
    return table.rows_table(columns, vectors, facts), [(key(rows.clip), len(rows.spans_s)) for rows in done], skipped


def _vectors(embedder: Embedder, cut: Cut, heard: Iterator[tuple[_Rows, Tensor]]) -> np.ndarray:
    """Vectors (n, E) of files or stretches; windows of several share a batch."""
    log_mels = (log_mel for rows, whole in heard for log_mel in _stretches(embedder, cut, rows, whole))
    first = next(log_mels, None)
    if first is None:
        return np.zeros((0, embedder.size), np.float32)
    return embedder.embed_log_mels(itertools.chain([first], log_mels))


def _stretches(embedder: Embedder, cut: Cut, rows: _Rows, log_mel: Tensor) -> Iterator[Tensor]:
    """Log-mel of each stretch of a clip that is to have a row, as :meth:`Embedder.embed_windows` cuts them."""
    frame_s = embedder.config.spectrogram.frame_s
    if cut.window_s is None or cut.hop_s is None:
        rows.spans_s.append((0.0, rows.heard.duration_s))
        yield log_mel
        return
    for first, stretch in stream_stretches([log_mel], length=round(cut.window_s / frame_s), hop=round(cut.hop_s / frame_s)):
        rows.spans_s.append((first * frame_s, (first + stretch.shape[-1]) * frame_s))
        yield stretch


def _patch_vectors(embedder: Embedder, heard: Iterator[tuple[_Rows, Tensor]]) -> np.ndarray:
    """Vectors (n, E') of patches, a file at a time: its windows fill batches of their own."""
    vectors = [np.zeros((0, embedder.config.model.width * len(embedder.config.embed.layers)), np.float32)]
    for rows, log_mel in heard:
        found = embedder.embed_patches(iter([log_mel]))
        rows.spans_s.extend(zip(found.start_s.tolist(), found.end_s.tolist(), strict=True))
        vectors.append(found.vectors)
    return np.concatenate(vectors)


class Shown:
    """Progress of a job: clips done, and how fast."""

    def __init__(self, progress: Progress, total: int, kept: int, skipped: int) -> None:
        self.progress, self.total, self.done, self.skipped = progress, total, kept, skipped
        self.embedded, self.audio_s, self.started_s = 0, 0.0, time.monotonic()

    def follow(self, clips: Sequence[Clip], answers: Iterator[Heard | str]) -> Iterator[tuple[Clip, Heard | str]]:
        """Pair clips with their answers as they come; a clip is done when the next one is asked for."""
        for clip in clips:
            answer = next(answers)
            yield clip, answer
            self.done += 1
            self.skipped += isinstance(answer, str)
            if isinstance(answer, Heard):
                self.embedded += 1
                self.audio_s += answer.duration_s
            self.progress(self.done, self.total, self._note())

    def _note(self) -> str:
        passed_s = max(time.monotonic() - self.started_s, 1e-9)
        rates = f"{self.embedded / passed_s:.1f} files/s, {self.audio_s / passed_s:,.0f}x real time"
        return rates + (f", {self.skipped} skipped" if self.skipped else "")

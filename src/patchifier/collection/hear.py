"""From files to log-mels and tags, in processes of their own, in the order asked for.

A long file's log-mel is put on disk piece by piece by the process that decodes it, and mapped into memory where the model is.
"""

import contextlib
import functools
import os
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchifier import audio, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip
from patchifier.processes import process_pool, require_start

LONG_FRAMES = 2**14  # 6.3 minutes, 4 MB of float32: beyond, a log-mel goes over the disk
AHEAD = 4  # files decoded or in work for each process
TAGS = {  # name in the table -> names in files: mutagen's easy ones, ID3 in wav and aiff, ASF
    "artist": ("artist", "TPE1", "Author"),
    "title": ("title", "TIT2", "Title"),
    "album": ("album", "TALB", "WM/AlbumTitle"),
    "genre": ("genre", "TCON", "WM/Genre"),
}


@dataclass(frozen=True)
class Heard:
    """What a process found in a file: its state on disk before it was read, length, tags, and log-mel or where that lies."""

    size: int
    mtime_ns: int
    duration_s: float
    tags: dict[str, str | None]
    log_mel: np.ndarray | str  # (M, T) float32, or the path of a spool file

    @contextlib.contextmanager
    def opened(self, bands: int) -> Iterator[Tensor]:
        """Log-mel (M, T), read from disk as it is used if it lies there; a spool file is gone afterwards."""
        if isinstance(self.log_mel, np.ndarray):
            yield torch.from_numpy(self.log_mel)
            return
        try:
            yield torch.from_numpy(np.memmap(self.log_mel, np.float32, "c").reshape(-1, bands)).T
        finally:
            os.unlink(self.log_mel)


def hear(clip: Clip, config: SpectrogramConfig, spool: str) -> Heard | str:
    """Log-mel and tags of one clip, or why there are none. Runs in a worker process."""
    try:
        state = os.stat(clip.path)
        samples = 0

        def blocks() -> Iterator[np.ndarray]:
            nonlocal samples
            for block in audio.blocks(clip.path, sample_rate=config.sample_rate, start_s=clip.start_s, end_s=clip.end_s):
                samples += len(block)
                yield block

        log_mel = _collect(spectrogram.stream_log_mel(blocks(), config), spool)
        return Heard(state.st_size, state.st_mtime_ns, samples / config.sample_rate, read_tags(clip.path), log_mel)
    except RequestError as error:
        return str(error)
    except (OSError, MemoryError) as error:
        return f"{clip.path}: cannot be read ({getattr(error, 'strerror', None) or error})."


def _collect(pieces: Iterator[Tensor], spool: str) -> np.ndarray | str:
    """Log-mel (M, T) if it is short, else the path of a file with its frames one after the other."""
    held, frames = list[Tensor](), 0
    for piece in pieces:
        held.append(piece)
        frames += piece.shape[-1]
        if frames > LONG_FRAMES:
            return _spooled(held, pieces, spool)
    return torch.cat(held, dim=-1).contiguous().numpy()


def _spooled(held: list[Tensor], rest: Iterator[Tensor], spool: str) -> str:
    path = os.path.join(spool, f"{uuid.uuid4().hex}.f32")
    try:
        with open(path, "wb") as stream:
            for piece in held:
                piece.T.contiguous().numpy().tofile(stream)
            held.clear()
            for piece in rest:
                piece.T.contiguous().numpy().tofile(stream)
    except BaseException:
        os.unlink(path)
        raise
    return path


def read_tags(path: str) -> dict[str, str | None]:
    """Artist, title, album and genre of a file; None for each that it does not say, or says illegibly."""
    import mutagen

    try:
        found = mutagen.File(path, easy=True)
        tags: Any = {} if found is None or found.tags is None else found.tags
    except Exception:  # a damaged tag raises anything at all, and no tag is worth a vector
        tags = {}
    return {name: _first(tags, places) for name, places in TAGS.items()}


def _first(tags: Any, places: Sequence[str]) -> str | None:
    for place in places:
        with contextlib.suppress(Exception):  # as above
            value = tags[place]
            value = getattr(value, "text", value)
            values = value if isinstance(value, list | tuple) else [value]
            text = "; ".join(str(one) for one in values).replace("\0", " ").strip()
            if text:
                return text.encode("utf-8", "replace").decode()
    return None


# --- in order ---


def hear_all(clips: Sequence[Clip], config: SpectrogramConfig, spool: Path, workers: int) -> Generator[Heard | str, None, None]:
    """Yield an answer for each clip, in their order. A file that kills its decoder is found out and named."""
    job = functools.partial(hear, config=config, spool=str(spool))
    waiting, running = deque(clips), deque[tuple[Clip, Future[Heard | str]]]()
    while waiting or running:
        with _ended(process_pool(min(workers, len(waiting)))) as pool:
            require_start(pool)
            try:
                while waiting or running:
                    while waiting and len(running) < AHEAD * workers:  # bounded, so that log-mels do not pile up
                        running.append((waiting[0], pool.submit(job, waiting[0])))
                        waiting.popleft()
                    answer = running[0][1].result()
                    running.popleft()
                    yield answer
            except BrokenProcessPool:
                pass
        yield from _one_by_one(running, job)
        running.clear()


def _one_by_one(running: Sequence[tuple[Clip, Future[Heard | str]]], job: Callable[[Clip], Heard | str]) -> Iterator[Heard | str]:
    """Answers of a pool that broke: those that it gave, and the others from a process that is replaced whenever it dies."""
    with contextlib.ExitStack() as stack:
        alone = None
        for clip, future in running:
            if future.done() and not future.cancelled() and not future.exception():
                yield future.result()
                continue
            alone = alone or stack.enter_context(_ended(process_pool(1)))
            try:
                yield alone.submit(job, clip).result()
            except BrokenProcessPool:
                alone = None
                yield f"{clip.path}: the decoder crashed on this file."


@contextlib.contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """A pool that forgets what it has not begun when it is left: an interruption need not wait for it."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

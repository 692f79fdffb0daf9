"""Fingerprints of audio files: computed on demand, in several processes, and kept."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchifier import audio, jobs, spectrogram
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.io import Progress, require_file, save_array, silent
from patchifier.library.sources import each
from patchifier.matching import CODE_SHIFTS, FLIPS, Print, print_of

CONFIG = SpectrogramConfig()
BATCH = 4  # files that a process is given at once


def fingerprints(
    paths: Sequence[str],
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Print | str]:
    """Fingerprint of each file, or the reason why there is none.

    They are kept in the folder `cache`, 0.5 kB for a second. One of a file that has another size or
    time of change is not used. Where the folder cannot be written, nothing is kept.
    """
    found: dict[str, Print | str] = {path: _kept(path, cache) or "" for path in paths}
    todo = [path for path, one in found.items() if one == ""]
    batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
    meter = jobs.Meter(progress, len(found), done=len(found) - len(todo))
    processes = max(1, min(workers or os.cpu_count() or 1, len(batches)))
    stamps, shared = {path: _stamp(path) for path in todo}, (_fingerprint,)
    with contextlib.closing(jobs.run(each, batches, workers=processes, shared=shared)) as results:
        for path, result in zip(todo, results, strict=True):
            found[path] = result
            meter.add(skipped=isinstance(result, str))
            if isinstance(result, Print):
                _keep(path, cache, result, stamps[path])
    return found


def _fingerprint(path: str) -> Print:
    """Fingerprint of a file, in memory that does not grow with its log-mel."""
    parts, rest = list[Print](), np.zeros((0, CONFIG.n_bands), np.float32)
    if not os.path.exists(path):
        raise RequestError(f"{path}: there is no such file.")
    for piece in spectrogram.stream_log_mel(audio.blocks(path), CONFIG):
        log_mel = np.concatenate([rest, piece.T])
        part = print_of(log_mel, CONFIG)
        rest = log_mel[len(part) :]
        parts.append(part)
    return Print(*(np.concatenate(some) for some in zip(*((p.bits, p.weakest) for p in parts))))


# --- kept fingerprints ---


def _stamp(path: str) -> np.ndarray | None:
    """Size and time of change of a file as three numbers; None if there is no file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    values = state.st_size, state.st_mtime_ns, state.st_mtime_ns >> 32
    return np.array([value & 0xFFFFFFFF for value in values], np.uint32)


def _place(path: str, cache: Path) -> Path:
    return cache / f"{hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()}.npy"


def _kept(path: str, cache: Path | None) -> Print | None:
    stamp = _stamp(path)
    if cache is None or stamp is None:
        return None
    place = _place(path, cache)
    with contextlib.suppress(OSError, ValueError, EOFError):  # none, or damaged: computed again
        require_file(place)
        rows = np.load(place, allow_pickle=False)
        if rows.dtype == np.uint32 and rows.ndim == 2 and np.array_equal(rows[:1], stamp[None]):
            weakest = np.ascontiguousarray(rows[1:, 2]).view(np.uint8)
            return Print(rows[1:, :2].copy(), weakest.reshape(-1, len(CODE_SHIFTS), FLIPS))
    return None


def _keep(path: str, cache: Path | None, one: Print, stamp: np.ndarray | None) -> None:
    """Write a fingerprint: a row of the stamp, then one for each frame, the last number packed."""
    if cache is None or stamp is None:
        return
    weakest = np.ascontiguousarray(one.weakest.reshape(len(one), -1)).view(np.uint32)
    rows = np.concatenate([stamp[None], np.concatenate([one.bits, weakest], axis=1)])
    with contextlib.suppress(PermissionError):
        save_array(_place(path, cache), rows)

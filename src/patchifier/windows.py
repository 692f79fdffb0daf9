"""From log-mels to windows: the inputs of a model of a trained length, for music of any length.

A log-mel is cut into patches that touch, the last one anchored to the end. Windows of trained
length start every ``hop_patches`` patches, the last one anchored to the end. Both are done while
the log-mel arrives, so that memory does not grow with its length.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from patchifier.audio import is_number
from patchifier.config import Config, RequestError, SpectrogramConfig

Item = TypeVar("Item")


def require_log_mel(log_mel: Any, config: Config) -> np.ndarray:
    """Return a log-mel (M, T) that fits the model; refuse anything else.

    Raises
    ------
    RequestError
        If it is no array of floats, is of another shape, or holds NaN or infinity.
    """
    expected = f"an array of floats ({config.spectrogram.n_bands}, T), as model.log_mel gives it"
    if not hasattr(log_mel, "__array__"):
        raise RequestError(f"a log-mel is of type {type(log_mel).__name__}, expected {expected}.")
    array = np.asarray(log_mel)
    if (
        array.ndim != 2
        or array.shape[0] != config.spectrogram.n_bands
        or not array.shape[1]
        or array.dtype.kind != "f"
    ):
        raise RequestError(
            f"a log-mel has shape {array.shape} of {array.dtype}, expected {expected}; "
            "if there is one alone, put it in a list."
        )
    if not np.isfinite(array).all():
        raise RequestError("a log-mel holds NaN or infinity, expected decibels x 0.01.")
    return array


def require_sequences(sequences: Iterable[Any], config: Config) -> list[np.ndarray]:
    """Return sequences of patches (N, 1, M, T); refuse arrays of other shapes, and anything else.

    Raises
    ------
    RequestError
        Naming the number of the sequence.
    """
    items = []
    shape = (1, config.spectrogram.n_bands, config.model.patch_frames)
    for number, patches in enumerate(sequences):
        given = f"is of type {type(patches).__name__}"
        if hasattr(patches, "__array__"):
            items.append(np.asarray(patches))
            if len(patches) and items[-1].shape[1:] == shape:
                continue
            given = f"has shape {items[-1].shape}"
        raise RequestError(
            f"sequence {number} {given}, expected an array (N, {', '.join(map(str, shape))}) with "
            "N of at least 1."
        )
    return items


def stretch_frames(
    window_s: float, hop_s: float | None, config: SpectrogramConfig
) -> tuple[int, int]:
    """Frames in a stretch, and between the starts of two, which touch by default.

    Raises
    ------
    RequestError
        If it is not a frame at least, or no number.
    """
    hop_s = window_s if hop_s is None else hop_s
    for name, value in (("window_s", window_s), ("hop_s", hop_s)):
        if not is_number(value) or value <= config.frame_s / 2:
            raise RequestError(
                f"{name} is {value!r}, expected at least one frame of {config.frame_s:.4f} s."
            )
    return round(window_s / config.frame_s), round(hop_s / config.frame_s)


def window_patches(config: Config) -> tuple[int, int]:
    """Patches in a window, as many as were trained together, and between the starts of two."""
    length = (
        config.pretrain.n_patches
        if config.pretrain.stage_two_patches == "consecutive"
        else config.model.max_patches
    )
    return length, min(config.embed.hop_patches, length)


def stream_windows(sequence: Iterable[Item], config: Config) -> Iterator[tuple[int, list[Item]]]:
    """Yield first index and items of each window of a sequence that arrives item by item.

    There is one window for a sequence shorter than that, and if the config wants the whole clip.
    """
    length, hop = window_patches(config)
    whole = config.embed.whole_clip
    recent: deque[Item] = deque(maxlen=None if whole else length)
    count, end = 0, 0  # items so far, and the end of the last window
    for item in sequence:
        recent.append(item)
        count += 1
        if not whole and count >= length and (count - length) % hop == 0:
            yield count - length, list(recent)
            end = count
    if end < count:
        yield count - len(recent), list(recent)


def stream_cut(pieces: Iterable[np.ndarray], config: Config) -> Iterator[tuple[np.ndarray, int]]:
    """Patches (1, M, W) that touch, each with how many frames at its end no patch before it holds.

    The last one is anchored to the end and holds fewer than W new frames; or it is the only one,
    too short, and padded with silence.

    Raises
    ------
    RequestError
        If there is not a single frame.
    """
    width = config.model.patch_frames
    rest, recent, frames = None, None, 0  # frames not yet in a patch, and the last W frames
    for piece in pieces:
        rest = piece if rest is None else np.concatenate([rest, piece], axis=-1)
        recent = rest if recent is None else np.concatenate([recent, piece], axis=-1)[:, -width:]
        frames += piece.shape[-1]
        whole = rest.shape[-1] // width
        for place in range(whole):
            yield rest[None, :, place * width : (place + 1) * width], width
        rest, recent = rest[:, whole * width :], recent[:, -width:]
    if not frames or recent is None:
        raise RequestError("there is a log-mel without a frame, expected at least one in each.")
    if frames < width:
        edges = ((0, 0), (0, width - frames))
        yield np.pad(recent, edges, constant_values=config.spectrogram.silence)[None], width
    elif frames % width:
        yield recent[None], frames % width


def without_silence(
    cut: Iterable[tuple[np.ndarray, int]], config: Config
) -> Iterator[tuple[np.ndarray, int]]:
    """Patches of :func:`stream_cut` that are not silent; a window of silence if all are.

    Parameters
    ----------
    cut : iterable of (ndarray, shape (1, M, W), int)
        Patches, each with its new frames.
    config : Config
        ``embed.silence_db`` says what silence is; all patches pass where it is None.

    Examples
    --------
    >>> silent = np.full((1, 64, 32), -1.0)
    >>> len(list(without_silence([(silent, 32), (silent + 0.5, 32), (silent, 32)], Config())))
    1
    """
    silence: list[tuple[np.ndarray, int]] | None = []  # None after the first sound
    for patch, new in cut:
        if not is_silent(patch, new, config):
            silence = None
            yield patch, new
        elif silence is not None and len(silence) < window_patches(config)[0]:
            silence.append((patch, new))
    yield from silence or []


def is_silent(patch: np.ndarray, n_new_frames: int, config: Config) -> bool:
    """Whether no mel band of the new frames of a patch (1, M, W) is above ``embed.silence_db``."""
    if config.embed.silence_db is None:
        return False
    level = patch[0, : config.spectrogram.n_mels, -n_new_frames:].max()
    return bool(level <= config.embed.silence_db * config.spectrogram.db_scale)


def stream_stretches(
    pieces: Iterable[np.ndarray], *, length: int, hop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Stretches of `length` frames that start every `hop` frames, the last one anchored to the end.

    First frame and log-mel (M, T').

    What is shorter than a stretch is one.
    """
    # frames in memory, frames before them, the next stretch, the end of the last
    held, dropped, start, end = (None, 0, 0, 0)
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece], axis=-1)
        while start + length <= dropped + held.shape[-1]:
            yield start, held[:, start - dropped : start - dropped + length]
            start, end = start + hop, start + length
        # the last `length` frames stay: the end is not known yet
        gone = max(0, min(start - dropped, held.shape[-1] - length))
        held, dropped = held[:, gone:], dropped + gone
    if held is not None and end < dropped + held.shape[-1]:
        yield dropped + max(0, held.shape[-1] - length), held[:, -length:]


def windows_of(
    log_mel: np.ndarray, config: Config, *, silence: bool = True
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First patch, patches (N, 1, M, W) and new frames of each patch (N,) of every window.

    Silent patches are among them unless `silence` is False.
    """
    cut = stream_cut([log_mel], config)
    patches, frames = zip(*(cut if silence else without_silence(cut, config)), strict=True)
    for first, window in stream_windows(patches, config):
        yield first, np.stack(window), np.array(frames[first : first + len(window)])


def cut_windows(log_mel: np.ndarray, config: Config, *, silence: bool = True) -> list[np.ndarray]:
    """Patches (N, 1, M, W) of each window of a log-mel (M, T), as :func:`windows_of` gives them.

    Examples
    --------
    >>> import numpy as np
    >>> [len(window) for window in cut_windows(np.zeros((64, 1249)), Config())]  # 29 s
    [25, 25]
    """
    return [window for _, window, _ in windows_of(log_mel, config, silence=silence)]


# --- batches ---

# of a batch's windows: two files of 30 s; more leave the cache of a core and take memory
MOST_PATCHES = 104
LEAST_PATCHES = 2  # in a window of a batch; the rest of a shorter one is padding

CutMusic = Iterable[tuple[np.ndarray, int]]  # patches (1, M, W) of a piece, with their new frames
CutWindow = tuple[int, int, list[tuple[np.ndarray, int]]]  # number of the piece, first patch


@dataclass(frozen=True)
class Batch:
    """Windows of pieces of music. A patch that is in two windows is there once.

    Attributes
    ----------
    pieces, first : list of int, length B
        Number of the piece that each window is from, and of its first patch in that piece.
    patches : numpy.ndarray, shape (P, 1, M, W), float32
    index : numpy.ndarray, shape (B, N), int64
        Patch at each place of a window.
    n_new_frames : numpy.ndarray, shape (B, N), int64
        Frames of each patch that no patch before it holds; 0 is padding.
    """

    pieces: list[int]
    first: list[int]
    patches: np.ndarray
    index: np.ndarray
    n_new_frames: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """What a network gives for a batch of B windows.

    Attributes
    ----------
    vectors : numpy.ndarray, shape (B, E)
        Embeddings.
    patch_vectors : numpy.ndarray, shape (B, N, E')
        Chosen layers of each patch in its context.
    predictions : numpy.ndarray, shape (B, C), or None
        Of a fine-tuned model: probabilities or values.
    """

    vectors: np.ndarray
    patch_vectors: np.ndarray
    predictions: np.ndarray | None = None


def batches(music: Iterable[CutMusic], config: Config) -> Iterator[Batch]:
    """Windows of pieces of music, which arrive as patches, in batches of any pieces."""
    windows = list[CutWindow]()
    patches = 0
    for number, piece in enumerate(music):
        for first, window in stream_windows(piece, config):
            if windows and patches + len(window) > MOST_PATCHES:
                yield _batch(windows)
                windows, patches = [], 0
            windows.append((number, first, window))
            patches += len(window)
    if windows:
        yield _batch(windows)


def _batch(windows: Sequence[CutWindow]) -> Batch:
    numbers: dict[tuple[int, int], int] = {}  # of the patches: by piece, and place in the piece
    patches: list[np.ndarray] = []
    width = max(LEAST_PATCHES, *(len(window) for _, _, window in windows))
    index, n_new_frames = np.zeros((2, len(windows), width), np.int64)
    for row, (piece, first, window) in enumerate(windows):
        for place, (patch, frames) in enumerate(window):
            if (piece, first + place) not in numbers:
                numbers[piece, first + place] = len(patches)
                patches.append(patch)
            index[row, place] = numbers[piece, first + place]
            n_new_frames[row, place] = frames
    stacked = np.stack(patches).astype(np.float32, copy=False)
    return Batch(
        [piece for piece, _, _ in windows],
        [first for _, first, _ in windows],
        stacked,
        index,
        n_new_frames,
    )


class Means:
    """Means of vectors by the number of what they belong to, summed in float64.

    Attributes
    ----------
    sums : dict of int to ndarray, shape (E,)
    """

    def __init__(self) -> None:
        self.sums: dict[int, np.ndarray] = {}
        self.counts = Counter[int]()

    def add(self, numbers: Iterable[int], vectors: np.ndarray) -> None:
        """Add vectors (k, E), one to each number."""
        for number, vector in zip(numbers, vectors.astype(np.float64), strict=True):
            self.sums[number] = self.sums.get(number, 0.0) + vector
            self.counts[number] += 1

    def result(self) -> np.ndarray:
        """Means (n, E), float32, in the order in which numbers came first."""
        counts = np.array(list(self.counts.values()))
        return (np.stack(list(self.sums.values())) / counts[:, None]).astype(np.float32)

"""From log-mels to windows: the inputs of a model of a trained length, for music of any length.

A log-mel is cut into patches that touch, the last one anchored to the end. Windows of trained
length start every ``hop_patches`` patches, the last one anchored to the end. Both are done while
the log-mel arrives, so that memory does not grow with its length.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from patchifier.audio import is_number
from patchifier.config import Config, RequestError, SpectrogramConfig

Item = TypeVar("Item")


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of up to `size` items as they arrive."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def require_log_mel(log_mel: Tensor, config: Config) -> Tensor:
    """Return a log-mel (M, T) that the model can hear; refuse anything else.

    Raises
    ------
    RequestError
        If it is no tensor of floats, is of another shape, or holds NaN or infinity.
    """
    expected = f"a tensor of floats ({config.spectrogram.n_bands}, T), as model.log_mel gives it"
    if not isinstance(log_mel, Tensor):
        listed = (
            " Paths come in a list, not in an iterator: embed(list(paths))."
            if isinstance(log_mel, str | Path)
            else ""
        )
        raise RequestError(
            f"a log-mel is of type {type(log_mel).__name__}, expected {expected}.{listed}"
        )
    if (
        log_mel.ndim != 2
        or log_mel.shape[0] != config.spectrogram.n_bands
        or not log_mel.shape[1]
        or not log_mel.is_floating_point()
    ):
        raise RequestError(
            f"a log-mel has shape {tuple(log_mel.shape)} of {log_mel.dtype}, expected {expected}; "
            "if there is one alone, put it in a list."
        )
    if not log_mel.isfinite().all():
        raise RequestError("a log-mel holds NaN or infinity, expected decibels x 0.01.")
    return log_mel


def require_sequences(sequences: Iterable[Tensor], config: Config) -> list[Tensor]:
    """Return sequences of patches (N, 1, M, T); refuse tensors of other shapes, and anything else.

    Raises
    ------
    RequestError
        Naming the number of the sequence.
    """
    items = list(sequences)
    shape = (1, config.spectrogram.n_bands, config.model.patch_frames)
    for number, patches in enumerate(items):
        given = f"is of type {type(patches).__name__}"
        if isinstance(patches, Tensor):
            if len(patches) and tuple(patches.shape[1:]) == shape:
                continue
            given = f"has shape {tuple(patches.shape)}"
        raise RequestError(
            f"sequence {number} {given}, expected a tensor (N, {', '.join(map(str, shape))}) with "
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


def stream_cut(pieces: Iterable[Tensor], config: Config) -> Iterator[tuple[Tensor, int]]:
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
        rest = piece if rest is None else torch.cat([rest, piece], dim=-1)
        recent = rest if recent is None else torch.cat([recent, piece], dim=-1)[:, -width:]
        frames += piece.shape[-1]
        whole = rest.shape[-1] // width
        for place in range(whole):
            yield rest[None, :, place * width : (place + 1) * width], width
        rest, recent = rest[:, whole * width :], recent[:, -width:]
    if not frames or recent is None:
        raise RequestError("there is a log-mel without a frame, expected at least one in each.")
    if frames < width:
        yield (
            nn.functional.pad(recent, (0, width - frames), value=config.spectrogram.silence)[None],
            width,
        )
    elif frames % width:
        yield recent[None], frames % width


def stream_stretches(
    pieces: Iterable[Tensor], *, length: int, hop: int
) -> Iterator[tuple[int, Tensor]]:
    """Stretches of `length` frames that start every `hop` frames, the last one anchored to the end.

    First frame and log-mel (M, T').

    What is shorter than a stretch is one.
    """
    # frames in memory, frames before them, the next stretch, the end of the last
    held, dropped, start, end = (None, 0, 0, 0)
    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece], dim=-1)
        while start + length <= dropped + held.shape[-1]:
            yield start, held[:, start - dropped : start - dropped + length]
            start, end = start + hop, start + length
        # the last `length` frames stay: the end is not known yet
        gone = max(0, min(start - dropped, held.shape[-1] - length))
        held, dropped = held[:, gone:], dropped + gone
    if held is not None and end < dropped + held.shape[-1]:
        yield dropped + max(0, held.shape[-1] - length), held[:, -length:]


def windows_of(log_mel: Tensor, config: Config) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First patch, patches (N, 1, M, W) and new frames of each patch (N,) of every window."""
    patches, frames = zip(*stream_cut([log_mel], config), strict=True)
    new = torch.tensor(frames, device=log_mel.device)
    for first, window in stream_windows(patches, config):
        yield first, torch.stack(window), new[first : first + len(window)]


def cut_windows(log_mel: Tensor, config: Config) -> list[Tensor]:
    """Patches (N, 1, M, W) of each window of a log-mel (M, T).

    Examples
    --------
    >>> import torch
    >>> [len(window) for window in cut_windows(torch.zeros(64, 1249), Config())]  # 29 s
    [25, 25]
    """
    return [window for _, window, _ in windows_of(log_mel, config)]


def pad_windows(windows: Sequence[Tensor], value: float) -> tuple[Tensor, Tensor]:
    """Stack windows (N_i, ...), padded with `value`: (B, N, ...) and which are valid (B, N)."""
    padded = nn.utils.rnn.pad_sequence(list(windows), batch_first=True, padding_value=value)
    counts = torch.tensor([len(window) for window in windows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]

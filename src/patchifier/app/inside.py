"""What a model sees in a song: its log-mel in patches, masked and reconstructed, and its structure.

Shapes: N patches, M mel bands, W frames in a patch, T frames of an excerpt, n steps of a song.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchifier import audio, estimates, predictors, spectrogram, windows
from patchifier.config import RequestError
from patchifier.embed import Embedder
from patchifier.seeding import generator

COLUMNS = 1200  # of a waveform that is drawn
ENVELOPE_RATE = 8_000  # enough for a waveform of 1,200 columns
MOST_STEPS = 480  # of a self-similarity matrix
KERNEL_S = 12.0  # half a checkerboard kernel
LEAST_SECTION_S = 8.0
SAME_SECTION = 0.5  # least cosine of the means of two sections with one label
SPAN_S, SPAN_HOP_S = 20.0, 10.0  # for tempo and key over time


@dataclass(frozen=True)
class Excerpt:
    """A window of a song, as a model that reconstructs sees it."""

    start_s: float
    log_mel: np.ndarray  # (M, N * W), mel bands of whole patches in dB x 0.01
    patch_frames: int
    frame_s: float  # seconds between two frames

    @property
    def n_patches(self) -> int:
        """Number of patches N."""
        return self.log_mel.shape[1] // self.patch_frames

    @property
    def end_s(self) -> float:
        """Where it ends in the song."""
        return self.start_s + self.log_mel.shape[1] * self.frame_s


@dataclass(frozen=True)
class Reconstructed:
    """Masked patches as a model predicts them, beside predictors that need no training."""

    masked: tuple[int, ...]
    log_mel: np.ndarray  # (M, N * W) with predictions in place of the masked patches
    mse: dict[str, float]  # on the masked patches: "model", and predictors.UNTRAINED


@dataclass(frozen=True)
class Section:
    """A part of a song; parts with the same label are alike."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Structure:
    """Structure of a song, in steps."""

    hop_s: float
    similarity: np.ndarray  # (n, n), cosine of every two steps
    novelty: np.ndarray  # (n,), from 0 to 1: how much the music changes
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Music:
    """Tempo and key of a song and over time, and its chords."""

    tempo: estimates.Tempo
    key: estimates.Key
    spans: tuple[tuple[float, float, estimates.Tempo, estimates.Key], ...]
    chords: tuple[estimates.Chord, ...]


def envelope(path: str | Path, columns: int = COLUMNS) -> tuple[float, np.ndarray]:
    """Duration of a song in seconds, and least and largest sample of each column (columns, 2).

    A file is read in blocks: memory does not grow with its length.
    """
    parts, count = [], 0
    step = ENVELOPE_RATE // 20  # least and largest of every 50 ms
    rest = np.zeros(0, np.float32)
    for block in audio.blocks(path, sample_rate=ENVELOPE_RATE):
        count += len(block)
        rest = np.concatenate([rest, block])
        whole = len(rest) // step * step
        pieces = rest[:whole].reshape(-1, step)
        parts.append(np.stack([pieces.min(1), pieces.max(1)], axis=1))
        rest = rest[whole:]
    if len(rest):
        parts.append(np.array([[rest.min(), rest.max()]]))
    fine = np.concatenate(parts)
    edges = np.linspace(0, len(fine), columns + 1)
    starts, ends = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    drawn = [
        (fine[start:end, 0].min(), fine[start:end, 1].max())
        for start, end in zip(starts, np.maximum(ends, starts + 1), strict=True)
    ]
    return count / ENVELOPE_RATE, np.clip(np.array(drawn, np.float32), -1, 1)


def excerpt(model: Embedder, path: str | Path, start_s: float = 0.0) -> Excerpt:
    """Read a window of a song from `start_s` on, of at most as many patches as were trained."""
    config, frame_s = model.config, model.config.spectrogram.frame_s
    W = config.model.patch_frames
    n_patches = windows.window_patches(config)[0]
    end_s = start_s + (n_patches * W + 1) * frame_s
    pieces = list(model.pieces(path, start_s=start_s, end_s=end_s))
    log_mel = np.concatenate(pieces, axis=1)[: config.spectrogram.n_mels, : n_patches * W]
    whole = log_mel.shape[1] // W * W
    if not whole:
        raise RequestError(
            f"{path} has less than a patch of {W * frame_s:.2f} s from {start_s:.1f} s on: choose "
            "an earlier place, or a longer file."
        )
    return Excerpt(start_s, log_mel[:, :whole], W, frame_s)


def random_mask(n_patches: int, ratio: float, seed: int = 0) -> tuple[int, ...]:
    """Draw the patches to mask: a share of all of them, at least one, and not all."""
    if not 0 < ratio < 1 or n_patches < 2:
        raise RequestError(
            f"the ratio is {ratio} of {n_patches} patches, expected a number between 0 and 1 of at "
            "least 2 patches."
        )
    count = min(max(1, round(ratio * n_patches)), n_patches - 1)
    drawn = generator(seed, "mask of the page", 0).permutation(n_patches)[:count]
    return tuple(sorted(drawn.tolist()))


def reconstruct(model: Embedder, shown: Excerpt, masked: Sequence[int]) -> Reconstructed:
    """Predict masked patches of an excerpt, at least one of them and not all."""
    N, W = shown.n_patches, shown.patch_frames
    if any(index < 0 or index >= N for index in masked) or not 0 < len(set(masked)) < N:
        raise RequestError(
            f"{len(set(masked))} of {N} patches are masked, expected at least one, and one that is "
            f"visible, with indices from 0 to {N - 1}."
        )
    mask = np.zeros(N, bool)
    mask[list(masked)] = True
    original, predicted = model.reconstruct(shown.log_mel, mask)  # (N, M, W)
    drawn = np.where(mask[:, None, None], predicted, original)
    error = float(np.square(predicted - original)[mask].mean())
    mse = {"model": error, **predictors.untrained_mse(original, mask)}
    log_mel = drawn.transpose(1, 0, 2).reshape(len(shown.log_mel), N * W)
    return Reconstructed(tuple(sorted(set(masked))), log_mel, mse)


def sound(model: Embedder, log_mel: np.ndarray) -> tuple[np.ndarray, int]:
    """Approximate samples (S,) of a log-mel (M, T), and their rate."""
    config = model.config.spectrogram.without_pitch
    return spectrogram.to_waveform(log_mel, config), config.sample_rate


def structure(model: Embedder, path: str | Path) -> Structure:
    """Find repeated sections of a song, by a self-similarity matrix and its novelty (Foote 2000).

    A step is described by the patch's vector in its context and, where the model has pitch bands,
    by its chroma; both as deviations from the song's mean.
    """
    log_mel = model.log_mel(path)
    found = model.embed_patches(iter([log_mel]))
    parts = [found.vectors]
    if model.config.spectrogram.n_pitch_bands:
        outline = estimates.features([log_mel], model.config.spectrogram)
        spans = zip(found.start_s.tolist(), found.end_s.tolist(), strict=True)
        parts.append(np.stack([outline.part(*span).chroma.mean(0) for span in spans]))  # (N, 12)
    end_s = float(found.end_s[-1])
    steps, hop_s = _steps([_unit(part - part.mean(0)) for part in parts], end_s)
    similarity = np.clip(steps @ steps.T, -1, 1)
    novelty = _novelty(similarity, max(1, round(KERNEL_S / hop_s)))
    edges = _boundaries(novelty, max(1, round(LEAST_SECTION_S / hop_s)))
    return Structure(hop_s, similarity, novelty, _sections(steps, edges, hop_s, end_s))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _steps(parts: Sequence[np.ndarray], end_s: float) -> tuple[np.ndarray, float]:
    """Unit vectors (n, E) of at most MOST_STEPS steps, and seconds of a step."""
    values = np.concatenate(parts, axis=1)  # (N, E)
    factor = -(-len(values) // MOST_STEPS)
    groups = [values[start : start + factor] for start in range(0, len(values), factor)]
    means = np.stack([group.mean(0) for group in groups])
    # neighbours are averaged: a patch is shorter than what a listener takes for a part
    padded = np.pad(means, ((1, 1), (0, 0)), mode="edge")
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return _unit(smooth), end_s / len(means)


def _novelty(similarity: np.ndarray, half: int) -> np.ndarray:
    """Correlation of a checkerboard kernel along the diagonal, from 0 to 1."""
    offsets = np.arange(-half, half) + 0.5
    taper = np.exp(-0.5 * (offsets / (half / 2)) ** 2)
    kernel = np.outer(np.sign(offsets) * taper, np.sign(offsets) * taper)
    padded = np.pad(similarity, half, mode="edge")
    n = len(similarity)
    values = np.array(
        [(kernel * padded[i : i + 2 * half, i : i + 2 * half]).sum() for i in range(n)]
    )
    values[0] = 0.0
    return np.maximum(values, 0) / max(float(values.max()), 1e-9)


def _boundaries(novelty: np.ndarray, apart: int) -> list[int]:
    """Steps at which sections begin: peaks of the novelty, at least so many steps apart."""
    least = float(novelty.mean() + 0.5 * novelty.std())
    n, chosen = len(novelty), [0]
    peaks = [
        i
        for i in range(apart, n - apart)
        if novelty[i] > least and novelty[i] == novelty[max(0, i - apart) : i + apart + 1].max()
    ]
    for peak in peaks:
        if peak - chosen[-1] >= apart:
            chosen.append(peak)
    return [*chosen, n]


def _sections(
    steps: np.ndarray, edges: Sequence[int], hop_s: float, end_s: float
) -> tuple[Section, ...]:
    """Sections with letters: one that is like an earlier one gets its letter."""
    sections: list[Section] = []
    means: list[np.ndarray] = []
    for start, end in itertools.pairwise(edges):
        mean = _unit(steps[start:end].mean(0))
        scores = [float(mean @ other) for other in means]
        best = int(np.argmax(scores)) if scores else -1
        if best < 0 or scores[best] < SAME_SECTION:
            means.append(mean)
            best = len(means) - 1
        last_s = end_s if end == edges[-1] else end * hop_s
        sections.append(Section(start * hop_s, last_s, _letter(best)))
    return tuple(sections)


def _letter(number: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    again, letter = divmod(number, 26)
    return chr(ord("A") + letter) + (str(again + 1) if again else "")


def music(model: Embedder, path: str | Path) -> Music:
    """Estimate tempo, key and chords of a song, and tempo and key of spans of 20 s."""
    config = model.config.spectrogram
    estimates.require_pitch_bands(config)
    found = estimates.features(model.pieces(path), config)
    end_s = len(found.onsets) * config.frame_s
    starts = np.arange(0, max(SPAN_HOP_S, end_s - SPAN_S / 2), SPAN_HOP_S).tolist()
    spans = []
    for start_s in starts:
        part = found.part(start_s, min(end_s, start_s + SPAN_S))
        last_s = min(end_s, start_s + SPAN_HOP_S)
        spans.append((start_s, last_s, estimates.tempo(part), estimates.key(part)))
    return Music(
        estimates.tempo(found), estimates.key(found), tuple(spans), estimates.chords(found)
    )

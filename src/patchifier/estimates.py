"""Tempo, key and chords, estimated from a log-mel with pitch bands.

Nothing here is trained. The tempo is the lag at which onsets repeat. Keys and chords are the
profiles that a chroma correlates with best. Each answer has a confidence, and is None where the
music does not say: in noise, in speech, in silence.

Shapes: M rows of a log-mel, T frames, Q = T / 4 steps of a chroma, K lags.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from patchifier.config import PITCH_PER_OCTAVE, RequestError, SpectrogramConfig

STEP_FRAMES = 4  # of a chroma: the long FFT of pitch bands does not resolve less
BINS = PITCH_PER_OCTAVE // 12  # of a semitone
NAMES = ("A", "Bb", "B", "C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab")
MODES = ("major", "minor")

# Profiles of Albrecht and Shanahan (2013), from the tonic up.
KEY_PROFILES = np.array(
    [
        [0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081],
        [0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052],
    ]
)
CHORD_TONES = (  # of both modes: semitones above the root; sevenths count as their triad
    ((0, 4, 7), (0, 4, 7, 11), (0, 4, 7, 10)),
    ((0, 3, 7), (0, 3, 7, 10)),
)
SEVENTH = 0.7  # weight of a seventh beside the triad

BPM, N_TEMPI = (40.0, 240.0), 1200  # candidates
PREFERRED_BPM, OCTAVES = 120.0, 0.8  # log-normal prior: its centre and its deviation
MULTIPLES = (1.0, 0.6, 0.4, 0.3)  # weights of one to four beats
SMOOTH_S = 0.5  # of the local mean that is subtracted from an onset strength
LEAST_S = 3.0  # of music that has a tempo, a key or a chord

SURE_TEMPO, SURE_KEY = 0.18, 0.6  # least strength of an answer
LEAST_CONTRAST = 0.4  # of pitch classes: deviation by mean; below 0.3 in noise
STAY, NO_CHORD = 0.97, 0.45  # probability that a chord lasts a step; correlation of "no chord"
SHARPNESS = 6.0  # of chord probabilities


@dataclass(frozen=True)
class Tempo:
    """A tempo in beats per minute, or None, and its strength from 0 to 1.

    The strength is the autocorrelation of onsets at the beat: 1 for a click track, below 0.15 in
    noise. A listener may tap half or twice the tempo.

    Examples
    --------
    >>> clicks = np.zeros(1000)
    >>> clicks[::20] = 1.0  # every 0.5 s
    >>> found = tempo(Features(clicks, np.zeros((250, 12)), 0.025))
    >>> round(found.bpm), found.strength > 0.9
    (120, True)
    """

    bpm: float | None
    strength: float


@dataclass(frozen=True)
class Key:
    """A key, such as "A minor", or None, and its strength from -1 to 1.

    The strength is the correlation of the music's pitch classes with the profile of the key.

    Examples
    --------
    >>> chroma = np.tile(KEY_PROFILES[0], (100, 1))  # the profile of A major
    >>> found = key(Features(np.zeros(400), chroma, 0.025))
    >>> found.name, found.strength > 0.9
    ('A major', True)
    """

    name: str | None
    strength: float


@dataclass(frozen=True)
class Chord:
    """A major or minor chord from `start_s` to `end_s`, such as "D minor"; None for no chord.

    Examples
    --------
    >>> chroma = np.zeros((40, 12))
    >>> chroma[:, [3, 7, 10]] = 1.0  # C, E and G, counted from A
    >>> chords(Features(np.zeros(160), chroma, 0.025))
    (Chord(start_s=0.0, end_s=4.0, name='C major'),)
    """

    start_s: float
    end_s: float
    name: str | None


@dataclass(frozen=True)
class Features:
    """What tempo, keys and chords are estimated from.

    Attributes
    ----------
    onsets : ndarray, shape (T,)
        Onset strength: mean increase of level over mel bands.
    chroma : ndarray, shape (Q, 12)
        Energy of the pitch classes from A, in steps of four frames; all zeros without pitch bands.
    frame_s : float
        Seconds between two frames.

    Examples
    --------
    >>> found = Features(np.zeros(400), np.zeros((100, 12)), 0.025)
    >>> found.part(1.0, 3.0).onsets.shape
    (80,)
    """

    onsets: np.ndarray
    chroma: np.ndarray
    frame_s: float

    def part(self, start_s: float, end_s: float) -> "Features":
        """Features of a part of the music."""
        first, last = (round(second / self.frame_s) for second in (start_s, end_s))
        steps = slice(first // STEP_FRAMES, last // STEP_FRAMES)
        return Features(self.onsets[first:last], self.chroma[steps], self.frame_s)


def features(pieces: Iterable[np.ndarray], config: SpectrogramConfig) -> Features:
    """Onset strength and chroma of a log-mel that arrives in pieces (M, T').

    Memory grows with the length by 16 numbers a frame.

    Examples
    --------
    >>> import numpy as np
    >>> silence = np.zeros((64 + 216, 40), np.float32)
    >>> found = features([silence], SpectrogramConfig(n_pitch_bands=216))
    >>> found.onsets.shape, found.chroma.shape
    ((40,), (10, 12))
    """
    onsets, fine, last = [], [], None
    rest = np.zeros((config.n_pitch_bands, 0), np.float32)
    for piece in pieces:
        mel = piece[: config.n_mels]
        before = mel[:, :1] if last is None else last
        rise = np.diff(mel, axis=1, prepend=before)
        onsets.append(np.maximum(rise, 0).mean(0))
        last = mel[:, -1:]
        rest = np.concatenate([rest, piece[config.n_mels :]], axis=1)
        whole = rest.shape[1] // STEP_FRAMES * STEP_FRAMES
        fine.append(_fine_chroma(rest[:, :whole]))
        rest = rest[:, whole:]
    chroma = _semitones(np.concatenate(fine) if fine else np.zeros((0, PITCH_PER_OCTAVE)))
    return Features(np.concatenate([np.zeros(0), *onsets]), chroma, config.frame_s)


def _fine_chroma(bands: np.ndarray) -> np.ndarray:
    """Salience (Q, 36) of thirds of a semitone, from pitch bands (bands, T)."""
    n_octaves = len(bands) // PITCH_PER_OCTAVE
    if not n_octaves:
        return np.zeros((bands.shape[1] // STEP_FRAMES, PITCH_PER_OCTAVE))
    steps = bands.reshape(len(bands), -1, STEP_FRAMES).mean(2, dtype=np.float64).T  # (Q, bands)
    reach = PITCH_PER_OCTAVE // 4
    sums = np.cumsum(np.pad(steps, ((0, 0), (reach + 1, reach))), axis=1)
    counts = np.cumsum(np.pad(np.ones(len(bands)), (reach + 1, reach)))
    width = 2 * reach + 1
    local = (sums[:, width:] - sums[:, :-width]) / (counts[width:] - counts[:-width])
    salience = np.maximum(steps - local, 0)[:, : n_octaves * PITCH_PER_OCTAVE]
    return salience.reshape(len(steps), n_octaves, PITCH_PER_OCTAVE).mean(1)


def _semitones(fine: np.ndarray) -> np.ndarray:
    """Chroma (Q, 12) of a fine one (Q, 36), by the tuning at which the music is strongest."""
    total = fine.sum(0).reshape(12, BINS)
    tuning = int(total.sum(0).argmax())  # 0: A is 440 Hz; 1 and 2: higher by 1/3, lower by 1/3
    around = np.roll(fine, BINS // 2 - tuning + (BINS if tuning == BINS - 1 else 0), axis=1)
    return around.reshape(len(fine), 12, BINS).sum(2)


# --- tempo ---


def tempo(found: Features) -> Tempo:
    """Estimate the tempo of music.

    The onset strength, less its local mean, is correlated with itself. A beat is strong where the
    music also repeats after two, three and four of it, and near 120 beats a minute.

    Examples
    --------
    >>> clicks = np.zeros(1000)
    >>> clicks[::20] = 1.0  # every 0.5 s
    >>> round(tempo(Features(clicks, np.zeros((250, 12)), 0.025)).bpm)
    120
    """
    if len(found.onsets) * found.frame_s < LEAST_S:
        return Tempo(None, 0.0)
    correlation = _autocorrelation(found.onsets, found.frame_s)
    bpm = np.geomspace(*BPM, N_TEMPI)
    lags = 60.0 / bpm / found.frame_s
    order = np.arange(len(correlation))
    strengths = np.zeros_like(bpm)
    for multiple, weight in enumerate(MULTIPLES, start=1):
        strengths += weight * np.interp(multiple * lags, order, correlation, right=0.0)
    prior = np.exp(-0.5 * (np.log2(bpm / PREFERRED_BPM) / OCTAVES) ** 2)
    best = int((strengths * prior).argmax())
    strength = float(max(0.0, strengths[best] / sum(MULTIPLES)))
    return Tempo(round(float(bpm[best]), 1) if strength >= SURE_TEMPO else None, strength)


def _autocorrelation(onsets: np.ndarray, frame_s: float) -> np.ndarray:
    """Autocorrelation of an onset strength less its local mean, 1 at lag 0."""
    width = 2 * round(SMOOTH_S / frame_s / 2) + 1
    ones = np.ones(width)
    local = np.convolve(onsets, ones, "same") / np.convolve(np.ones_like(onsets), ones, "same")
    centred = np.maximum(onsets - local, 0)
    centred = centred - centred.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(centred)]
    # each lag by the number of its pairs, of which there are many up to half the length
    correlation *= len(centred) / np.maximum(len(centred) - np.arange(len(centred)), 1)
    most = len(centred) // 2 + 1
    return correlation[:most] / max(correlation[0], 1e-12)


# --- keys and chords ---


def key(found: Features) -> Key:
    """Estimate the key of music by the profile that its chroma correlates with best.

    Examples
    --------
    >>> chroma = np.roll(KEY_PROFILES[0], 3)  # C is three semitones above A
    >>> key(Features(np.zeros(400), np.tile(chroma, (100, 1)), 0.025)).name
    'C major'
    """
    if len(found.chroma) * STEP_FRAMES * found.frame_s < LEAST_S or not found.chroma.any():
        return Key(None, 0.0)
    mean = np.square(found.chroma).mean(0)
    strengths = _correlations(mean[None], _rotated(KEY_PROFILES))[0]  # (24,)
    best = int(strengths.argmax())
    strength, contrast = float(strengths[best]), float(mean.std() / mean.mean())
    sure = strength >= SURE_KEY and contrast >= LEAST_CONTRAST
    return Key(_name(best) if sure else None, strength)


def chords(found: Features) -> tuple[Chord, ...]:
    """Estimate chords over time: major and minor, by a hidden Markov model of templates.

    A chord with a seventh has the name of its triad.

    Examples
    --------
    >>> chroma = np.zeros((80, 12))
    >>> chroma[:40, [3, 7, 10]], chroma[40:, [5, 8, 0]] = 1.0, 1.0
    >>> [chord.name for chord in chords(Features(np.zeros(320), chroma, 0.025))]
    ['C major', 'D minor']
    """
    if not len(found.chroma):
        return ()
    energy = np.square(found.chroma)
    modes = [_correlations(energy, _rotated(_templates(tones))) for tones in CHORD_TONES]
    best = [fit.reshape(len(energy), 12, -1).max(2) for fit in modes]  # (Q, 12) of both modes
    fit = np.stack(best, axis=2).reshape(len(energy), 24)
    fit = np.concatenate([fit, np.full((len(fit), 1), NO_CHORD)], axis=1)
    change_cost = math.log(STAY) - math.log((1 - STAY) / (fit.shape[1] - 1))
    states = smooth_path(SHARPNESS * fit, change_cost)
    step_s = STEP_FRAMES * found.frame_s
    edges = [0, *(np.flatnonzero(np.diff(states)) + 1).tolist(), len(states)]
    return tuple(
        Chord(start * step_s, end * step_s, _name(int(states[start])))
        for start, end in itertools.pairwise(edges)
    )


def _templates(chords: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Pitch classes (K, 12) of chords on the root A."""
    found = np.zeros((len(chords), 12))
    for row, (first, third, fifth, *seventh) in zip(found, chords):
        row[[first, third, fifth]] = 1.0
        row[seventh] = SEVENTH
    return found


def _rotated(profiles: np.ndarray) -> np.ndarray:
    """Profiles (K, 12) from each of twelve roots: (12 K, 12)."""
    return np.concatenate([np.roll(profiles, root, axis=1) for root in range(12)])


def _name(state: int) -> str | None:
    root, mode = divmod(state, 2)
    return None if root == 12 else f"{NAMES[root]} {MODES[mode]}"


def _correlations(values: np.ndarray, profiles: np.ndarray) -> np.ndarray:
    """Pearson correlation (Q, P) of each of (Q, 12) with each of (P, 12); 0 for constant ones."""
    values = values - values.mean(1, keepdims=True)
    profiles = profiles - profiles.mean(1, keepdims=True)
    sizes = np.linalg.norm(values, axis=1)[:, None] * np.linalg.norm(profiles, axis=1)
    return values @ profiles.T / np.maximum(sizes, 1e-9)


def smooth_path(scores: np.ndarray, change_cost: float) -> np.ndarray:
    """Most probable states (Q,) of log scores (Q, S), where a change costs as many nats: Viterbi.

    Examples
    --------
    >>> smooth_path(np.log([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]]), 2.0).tolist()
    [0, 0, 0]
    """
    n_states = scores.shape[1]
    total, came_from = scores[0], np.zeros(scores.shape, int)
    for step in range(1, len(scores)):
        best = int(total.argmax())
        stays = total >= total[best] - change_cost
        came_from[step] = np.where(stays, np.arange(n_states), best)
        total = np.where(stays, total, total[best] - change_cost) + scores[step]
    states = np.full(len(scores), total.argmax())
    for step in range(len(scores) - 1, 0, -1):
        states[step - 1] = came_from[step, states[step]]
    return states


def require_pitch_bands(config: SpectrogramConfig) -> None:
    """Refuse settings without an octave of pitch bands, from which no key can be estimated."""
    if config.n_pitch_bands < PITCH_PER_OCTAVE:
        raise RequestError(
            f"keys and chords need at least {PITCH_PER_OCTAVE} pitch bands, this model has "
            f"{config.n_pitch_bands}: use patchifier-base."
        )

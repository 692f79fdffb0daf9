"""Sounds inside the page: reconstructions, and excerpts of clips, as mp3."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchifier import audio, spectrogram
from patchifier.cache import Cache
from patchifier.config import RequestError, SpectrogramConfig, update
from patchifier.evaluate.report.folders import RunFolder, get_part
from patchifier.io import Progress

EXCERPT_S = 6.0
INVERSIONS = 16  # rounds of Griffin-Lim: enough to compare by ear
PEAK = 0.7  # full scale is 1: excerpts are as loud as each other


@dataclass(frozen=True)
class Excerpts:
    """Excerpts of the clips of a cache, None if it is gone."""

    data: Cache | None

    @classmethod
    def of(cls, run: RunFolder) -> "Excerpts":
        """Find the cache that a run names; its path may be gone."""
        try:
            return cls(Cache(str(run.facts.get("cache", ""))))
        except (RequestError, OSError):
            return cls(None)

    def describe(self, clip_id: str) -> dict[str, Any]:
        """Title of a clip, and ``sound``: a data URI, or the reason why there is none."""
        numbers = {} if self.data is None else {c.id: n for n, c in enumerate(self.data.clips)}
        if self.data is None or clip_id not in numbers:
            return {"title": clip_id, "sound": "", "reason": "its cache is not there"}
        clip = self.data.clips[numbers[clip_id]]
        length_s = float(self.data.frames[numbers[clip_id]]) * self.data.spectrogram.frame_s
        start_s = clip.start_s + max(0.0, (length_s - EXCERPT_S) / 2)
        title = " – ".join(clip.info[key] for key in ("artist", "title") if key in clip.info)
        try:
            sound = audio.load(
                clip.path,
                sample_rate=audio.SAMPLE_RATE,
                start_s=start_s,
                end_s=start_s + min(EXCERPT_S, length_s),
            )
        except (RequestError, OSError, ValueError):
            return {"title": title or clip_id, "sound": "", "reason": "its file cannot be read"}
        return {"title": title or clip_id, "sound": source(sound, audio.SAMPLE_RATE)}


def source(waveform: np.ndarray, sample_rate: int) -> str:
    """Data URI of a waveform (S,), turned up or down to one peak."""
    peak = float(np.abs(waveform).max(initial=0.0))
    loud = waveform * (PEAK / peak if peak > 0 else 1.0)
    content = base64.b64encode(audio.to_mp3(loud, sample_rate)).decode()
    return f"data:audio/mpeg;base64,{content}"


def reconstruction_sounds(
    run: RunFolder, arrays: Mapping[str, np.ndarray], ratios: Sequence[str], progress: Progress
) -> dict[str, str]:
    """Data URIs of the original (key "") and of the reconstruction at each mask ratio.

    All are made from log-mels, so what they lose by that they have in common. Given patches stay
    as they are. Empty where the run does not say how its log-mels were made.
    """
    config = _spectrogram(run)
    if config is None:
        return {}
    original, found = arrays["original"], {}
    for number, ratio in enumerate(("", *ratios)):
        progress(number, 1 + len(ratios), f"sound at mask ratio {ratio}" if ratio else "sound")
        patches = original
        if ratio:
            masked = arrays[f"masked_{ratio}"].astype(bool)[:, None, None]
            patches = np.where(masked, arrays[f"reconstructed_{ratio}"], original)
        log_mel = np.concatenate(list(patches), axis=1)
        if np.isfinite(log_mel).all():
            waveform = spectrogram.to_waveform(log_mel, config, iterations=INVERSIONS)
            found[ratio] = source(waveform, config.sample_rate)
    progress(1 + len(ratios), 1 + len(ratios), "")
    return found


def _spectrogram(run: RunFolder) -> SpectrogramConfig | None:
    """Settings of a run's log-mels, without pitch bands; None if its config cannot be read."""
    if not (settings := get_part(run.config, "spectrogram")):
        return None
    try:
        return update(SpectrogramConfig(), settings).without_pitch
    except RequestError:
        return None


def kriging_errors(facts: Mapping[str, str]) -> dict[str, float]:
    """MSE of kriging by mask ratio; empty for runs of older versions."""
    try:
        found = json.loads(facts.get("kriging_mse", "{}"))
        return {str(ratio): float(value) for ratio, value in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}

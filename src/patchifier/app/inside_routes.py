"""Endpoints: the inside of a song. Files are decoded in processes that may die."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import soundfile
from starlette.responses import Response

from patchifier import weights
from patchifier.app import inside
from patchifier.app.parameters import SongParams, require_range
from patchifier.app.state import Served
from patchifier.config import RequestError
from patchifier.embed import Embedder, load

MIN_DB, MAX_DB = -100.0, 40.0  # of a log-mel that is sent as bytes
ERROR_DB = 40.0  # error that is drawn as the largest


@dataclass(frozen=True)
class InsideParams:
    """A song, and where its window begins."""

    id: str
    start_s: float = 0.0

    def __post_init__(self) -> None:
        require_range("start_s", self.start_s, 0, 1e6)


@dataclass(frozen=True)
class ReconstructParams(InsideParams):
    """A window and its masked patches, by index or by a ratio and a seed."""

    masked: list[int] = field(default_factory=list)
    ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("seed", self.seed, 0, 2**31)
        if bool(self.masked) == (self.ratio is not None):
            raise RequestError("give either masked, a list of patches, or ratio, such as 0.75.")


@dataclass(frozen=True)
class HearParams(InsideParams):
    """A window as it was, or with its masked patches reconstructed ("0,3,5")."""

    kind: Literal["original", "reconstructed"] = "original"
    masked: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(part.isdecimal() and len(part) < 6 for part in self.masked.split(",") if part):
            raise RequestError(f"masked is {self.masked[:40]!r}, expected numbers such as 0,3,5.")
        if self.kind == "reconstructed" and not self.masked:
            raise RequestError("masked is empty, expected the masked patches, such as 0,3,5.")


def window(served: Served, params: InsideParams) -> dict[str, Any]:
    """The waveform of a song, and the log-mel of one window of it."""
    file = served.song(params.id).file()
    with ThreadPoolExecutor(2) as threads:  # each waits for a process
        whole = threads.submit(served.kept_from_worker, inside.envelope, file)
        shown = _excerpt(served, file, params.start_s)
        duration_s, drawn = whole.result()
    return {
        "start_s": shown.start_s,
        "end_s": shown.end_s,
        "duration_s": duration_s,
        "frame_s": shown.frame_s,
        "n_mels": len(shown.log_mel),
        "n_frames": shown.log_mel.shape[1],
        "patch_frames": shown.patch_frames,
        "n_patches": shown.n_patches,
        "log_mel": _bytes(shown.log_mel),
        "min_db": MIN_DB,
        "max_db": MAX_DB,
        "waveform": _packed(drawn * 127, np.int8),  # (columns, 2): least, largest
    }


def reconstruct(served: Served, params: ReconstructParams) -> dict[str, Any]:
    """Masked patches of a window as the model draws them, beside two simple predictions."""
    shown = _excerpt(served, served.song(params.id).file(), params.start_s)
    masked: Sequence[int] = params.masked
    if params.ratio is not None:
        masked = inside.random_mask(shown.n_patches, params.ratio, params.seed)
    found = inside.reconstruct(_painter(served), shown, masked)
    error = np.abs(found.log_mel - shown.log_mel) * 100 / ERROR_DB
    return {
        "masked": list(found.masked),
        "reconstructed": _bytes(found.log_mel),
        "error": _packed(255 * error.clip(0, 1)),
        "max_error_db": ERROR_DB,
        "mse": found.mse,
        "model_name": weights.PAPER,
    }


def hear(served: Served, params: HearParams) -> Response:
    """The sound of a window's log-mel: a rough inversion, as a wav file."""
    file = served.song(params.id).file()
    masked = tuple(int(part) for part in params.masked.split(",") if part)
    masked = masked if params.kind == "reconstructed" else ()

    def make() -> bytes:
        shown = _excerpt(served, file, params.start_s)
        log_mel = shown.log_mel
        if masked:
            log_mel = inside.reconstruct(_painter(served), shown, masked).log_mel
        with served.turn():
            samples, rate = inside.sound(_painter(served), log_mel)
        content = io.BytesIO()
        quieter = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
        soundfile.write(content, quieter, rate, format="WAV", subtype="PCM_16")
        return content.getvalue()

    content = served.kept.get(("sound", file, params.start_s, masked), make)
    return Response(content, media_type="audio/wav")


def structure(served: Served, params: SongParams) -> dict[str, Any]:
    """Self-similarity of a song, its novelty, and its sections."""
    file = served.song(params.id).file()
    found = served.kept_from_worker(inside.structure, file, shared=[served.require_embedder()])
    return {
        "hop_s": found.hop_s,
        "n": len(found.similarity),
        "similarity": _packed((found.similarity + 1) * 127.5),
        "novelty": found.novelty.round(4).tolist(),
        "sections": [vars(section) for section in found.sections],
    }


def music(served: Served, params: SongParams) -> dict[str, Any]:
    """Tempo, key and chords of a song, and over time."""
    file = served.song(params.id).file()
    found = served.kept_from_worker(inside.music, file, shared=[served.require_embedder()])
    return {
        "tempo": _estimate(found.tempo, "bpm"),
        "key": _estimate(found.key, "name"),
        "spans": [
            {"start_s": start_s, "end_s": end_s, "bpm": tempo.bpm, "key": key.name}
            for start_s, end_s, tempo, key in found.spans
        ],
        "chords": [vars(chord) for chord in found.chords],
    }


def _estimate(found: Any, name: str) -> dict[str, Any] | None:
    value = getattr(found, name)
    if value is None or value == "":
        return None
    return {name: value, "confidence": round(float(found.strength), 3)}


# --- what is made once ---


def _painter(served: Served) -> Embedder:
    """The bundled model that was trained to draw patches."""
    painter: Embedder = served.kept.get("painter", lambda: load(weights.PAPER))
    return painter


def _excerpt(served: Served, file: str, start_s: float) -> inside.Excerpt:
    shared = [_painter(served)]
    return served.kept_from_worker(inside.excerpt, file, round(start_s, 2), shared=shared)


def _bytes(log_mel: np.ndarray) -> str:
    """A log-mel (M, T) in dB x 0.01 as bytes from MIN_DB to MAX_DB, in base64."""
    scaled = (log_mel * 100 - MIN_DB) / (MAX_DB - MIN_DB)
    return _packed(255 * scaled.clip(0, 1))


def _packed(values: np.ndarray, kind: type = np.uint8) -> str:
    """Numbers rounded to whole ones, as bytes in base64."""
    return base64.b64encode(np.rint(values).astype(kind).tobytes()).decode()

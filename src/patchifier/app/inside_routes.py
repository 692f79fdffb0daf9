"""Endpoints: the inside of a song. Files are decoded in processes that may die."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import soundfile
from starlette.responses import Response

from patchifier import jobs, weights
from patchifier.app import inside
from patchifier.app.parameters import require_range
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
class ReconstructParams:
    """A window and its masked patches, by index or by a ratio and a seed."""

    id: str
    start_s: float = 0.0
    masked: list[int] = field(default_factory=list)
    ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("start_s", self.start_s, 0, 1e6)
        require_range("seed", self.seed, 0, 2**31)
        if bool(self.masked) == (self.ratio is not None):
            raise RequestError("give either masked, a list of patches, or ratio, such as 0.75.")


@dataclass(frozen=True)
class HearParams:
    """A window as it was, or with its masked patches reconstructed ("0,3,5")."""

    id: str
    start_s: float = 0.0
    kind: Literal["original", "reconstructed"] = "original"
    masked: str = ""

    def __post_init__(self) -> None:
        require_range("start_s", self.start_s, 0, 1e6)
        if not all(part.isdecimal() and len(part) < 6 for part in self.masked.split(",") if part):
            raise RequestError(f"masked is {self.masked[:40]!r}, expected numbers such as 0,3,5.")
        if self.kind == "reconstructed" and not self.masked:
            raise RequestError("masked is empty, expected the masked patches, such as 0,3,5.")


@dataclass(frozen=True)
class SongParams:
    """A song."""

    id: str


def window(served: Served, params: InsideParams) -> dict[str, Any]:
    """The waveform of a song, and the log-mel of one window of it."""
    file = served.song(params.id).file()
    with ThreadPoolExecutor(2) as threads:  # each waits for a process
        whole = threads.submit(_worked, served, inside.envelope, file)
        shown = _excerpt(served, file, params.start_s)
        duration_s, drawn = whole.result()
    columns = np.rint(drawn * 127).astype(np.int8)  # (columns, 2): least, largest
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
        "waveform": base64.b64encode(columns.tobytes()).decode(),
    }


def reconstruct(served: Served, params: ReconstructParams) -> dict[str, Any]:
    """Masked patches of a window as the model draws them, beside two simple predictions."""
    shown = _excerpt(served, served.song(params.id).file(), params.start_s)
    masked: Sequence[int] = params.masked
    if params.ratio is not None:
        masked = inside.random_mask(shown.n_patches, params.ratio, params.seed)
    found = _reconstructed(served, shown, masked)
    error = np.abs(found.log_mel - shown.log_mel) * 100 / ERROR_DB
    return {
        "masked": list(found.masked),
        "reconstructed": _bytes(found.log_mel),
        "error": base64.b64encode(np.rint(255 * error.clip(0, 1)).astype(np.uint8)).decode(),
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
        log_mel = _reconstructed(served, shown, masked).log_mel if masked else shown.log_mel
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
    found = _worked(served, inside.structure, file, model=served.require_embedder())
    cells = np.rint((found.similarity + 1) * 127.5).astype(np.uint8)
    return {
        "hop_s": found.hop_s,
        "n": len(cells),
        "similarity": base64.b64encode(cells.tobytes()).decode(),
        "novelty": found.novelty.round(4).tolist(),
        "sections": [vars(section) for section in found.sections],
    }


def music(served: Served, params: SongParams) -> dict[str, Any]:
    """Tempo, key and chords of a song, and over time."""
    file = served.song(params.id).file()
    found = _worked(served, inside.music, file, model=served.require_embedder())
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
    start_s = round(start_s, 2)
    painter = _painter(served)
    found: inside.Excerpt = _worked(served, inside.excerpt, file, start_s, model=painter)
    return found


def _reconstructed(
    served: Served, shown: inside.Excerpt, masked: Sequence[int]
) -> inside.Reconstructed:
    return inside.reconstruct(_painter(served), shown, masked)


def _worked(
    served: Served,
    function: Callable[..., Any],
    file: str,
    *arguments: Any,
    model: Embedder | None = None,
) -> Any:
    """Result of a function of :mod:`patchifier.app.inside`, from a process, kept."""
    task = _Task(function, file, arguments)
    key = (function.__name__, file, *arguments)
    return served.kept.get(key, lambda: served.in_worker(work, task, shared=model))


@dataclass(frozen=True)
class _Task:
    function: Callable[..., Any]
    path: str
    arguments: tuple[Any, ...]


def work(model: Embedder | None, tasks: Sequence[_Task]) -> list[Any]:
    """Do tasks of :func:`patchifier.jobs.run`; the reason why not, where one cannot be done."""
    models = [] if model is None else [model]
    return [
        jobs.attempt(task.path, task.function, *models, task.path, *task.arguments)
        for task in tasks
    ]


def _bytes(log_mel: np.ndarray) -> str:
    """A log-mel (M, T) in dB x 0.01 as bytes from MIN_DB to MAX_DB, in base64."""
    scaled = (log_mel * 100 - MIN_DB) / (MAX_DB - MIN_DB)
    return base64.b64encode(np.rint(255 * scaled.clip(0, 1)).astype(np.uint8).tobytes()).decode()

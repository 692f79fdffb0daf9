"""Endpoint: a file from elsewhere is uploaded, embedded, and then a song like any other."""

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from patchifier import audio, spectrogram
from patchifier.app.parameters import RefusedError
from patchifier.app.state import Served, Upload, UploadLimits
from patchifier.embed import Embedder
from patchifier.library.tags import read_tags

KEPT = 20  # uploads; the oldest is removed for a further one
AT_ONCE = 4  # uploads that arrive at one time


async def receive(served: Served, request: Request) -> dict[str, Any]:
    """Receive the bytes of an audio file (?name= says its name) and embed it."""
    name = Path(request.query_params.get("name", "")[-200:]).name or "upload"
    if audio.name_fault(name) or not name.isprintable():
        raise RefusedError(400, "the name of the upload has letters that are no text: rename it.")
    served.require_embedder()
    if served.arriving >= AT_ONCE:
        raise RefusedError(429, "too many uploads at once: try again in a few seconds.", retry_s=5)
    served.arriving += 1
    file = _new_file(served.folder, name)
    try:
        content = await _receive(request, file, served.limits)
        if not content:
            raise RefusedError(422, f"{name}: is empty (0 bytes).")
        upload = await run_in_threadpool(embed, served, file, name, f"upload-{content}")
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        served.arriving -= 1
    return {"track": upload.track()}


def _new_file(folder: Path, name: str) -> Path:
    """Make an empty file; its suffix is that of the name, which some decoders go by."""
    suffix = Path(name).suffix.lower()
    handle, path = tempfile.mkstemp(
        suffix=suffix if suffix in audio.SUFFIXES else "", prefix="upload-", dir=folder
    )
    os.close(handle)
    return Path(path)


async def _receive(request: Request, file: Path, limits: UploadLimits) -> str:
    """Write a body to a file; return its digest, or nothing if it is empty."""
    most = int(limits.bytes_mb * 1e6)
    too_large = RefusedError(
        413,
        f"the upload is larger than {limits.bytes_mb:g} MB: cut the file, or convert it to mp3.",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    digest, size = hashlib.blake2b(digest_size=8), 0
    try:
        async with asyncio.timeout(limits.receive_s):
            with file.open("wb") as stream:
                async for block in request.stream():
                    size += len(block)
                    if size > most:
                        raise too_large
                    digest.update(block)
                    stream.write(block)
    except TimeoutError:
        raise RefusedError(
            408, f"the upload did not arrive within {limits.receive_s:g} s: try again."
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "the upload ended before its end: try again.") from None
    return digest.hexdigest() if size else ""


def embed(served: Served, file: Path, name: str, one: str) -> Upload:
    """Embed an uploaded file and keep it."""
    if one in served.uploads:
        file.unlink()
        return served.uploads[one]
    shared = (served.require_embedder(), served.limits)
    try:
        vector, length_s, tags = served.in_worker(embed_file, str(file), shared=shared)
    except RefusedError as error:
        sentence = str(error).replace(str(file), name)
        raise RefusedError(error.status, sentence, retry_s=error.retry_s) from error
    upload = Upload(one, file, name, vector, length_s, tags)
    served.uploads[one] = upload
    while len(served.uploads) > KEPT:
        with contextlib.suppress(KeyError, OSError):
            served.uploads.pop(next(iter(served.uploads))).path.unlink()
    return upload


Found = tuple[np.ndarray, float, dict[str, Any]]  # unit vector (E,), seconds, tags


def embed_file(embedder: Embedder, limits: UploadLimits, path: str) -> Found:
    """Embed a file that is not longer, and takes no longer, than an upload may."""
    how = audio.Decoding(mix_lfe=embedder.config.embed.mix_lfe)
    blocks = _within(path, embedder.config.spectrogram.sample_rate, limits, how)
    vector = embedder.embed(spectrogram.stream_log_mel(blocks, embedder.config.spectrogram))
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or not length:
        raise audio.AudioError(f"{path}: the model finds no direction for this file.")
    return (vector / length).astype(np.float32), how.length_s, dict(read_tags(path))


def _within(
    path: str, rate: int, limits: UploadLimits, how: audio.Decoding
) -> Iterator[np.ndarray]:
    """Blocks of a file, until it is too long or takes too long."""
    samples, end_s = 0, time.monotonic() + limits.embed_s
    for block in audio.blocks(path, sample_rate=rate, how=how):
        samples += len(block)
        if samples > limits.length_s * rate:
            raise audio.AudioError(
                f"{path}: is longer than {limits.length_s / 60:g} minutes, the limit of an upload: "
                "cut the file, or embed it with 'patchifier embed'."
            )
        if time.monotonic() > end_s:
            raise audio.AudioError(
                f"{path}: takes longer than {limits.embed_s:g} s to embed, the limit of an upload."
            )
        yield block

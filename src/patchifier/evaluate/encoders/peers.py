"""Other people's models: any audio model of the transformers library, any module with the HEAR API.

Each hears every clip at its own sample rate, resampled from the file and not from this package's 22,050 Hz.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from patchifier.checkpoint import weights_hash
from patchifier.config import RequestError, digest
from patchifier.evaluate.encoders.interface import (
    Asked,
    Encoder,
    at_end,
    count,
    each_waveform,
    first_line,
    require_answer,
)

WINDOW_S = 10.0  # AST and CLAP cut off what is longer, and attention grows with the square
SHORTEST_S = (
    0.5  # below, convolutions and filter banks have nothing to slide over: silence is added behind
)
UNUSED = (
    "masked_spec_embed",
    "pooler",
)  # weights that a checkpoint may lack: no feature depends on them


# --- transformers ---


def hugging_face(
    name: str, argument: str, asked: Asked, *, trust_remote_code: bool = False
) -> list[Encoder]:
    """Row "hf": ID or local folder, with or without @layer.

    The feature is the mean over time of the last layer's output, or of hidden state `layer` (0 is what the first layer is given, -1 the last),
    then over windows of 10 s, the last one anchored to the end of the clip. A model with one vector for each sound gives that.

    Raises
    ------
    RequestError
        If transformers is missing, there is no such model, it is none for audio, it lacks weights or that layer.
    """
    source, layer = _source_and_layer(argument)
    extractor, model = _load(name, source, trust_remote_code=trust_remote_code)
    model = model.float().eval().to(asked.device)
    rate = int(extractor.sampling_rate)
    padded_s = getattr(
        extractor, "chunk_length", None
    )  # Whisper fills every window up to this length

    def window(waveform: np.ndarray) -> np.ndarray:
        inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt").to(asked.device)
        share = min(1.0, len(waveform) / (padded_s * rate)) if padded_s else 1.0
        return _pooled(name, _run(name, model, inputs, layer), share)

    def vector(waveform: np.ndarray) -> np.ndarray:
        return np.mean(
            [
                window(part)
                for part in windows(
                    waveform, int((padded_s or WINDOW_S) * rate), shortest=int(SHORTEST_S * rate)
                )
            ],
            axis=0,
        )

    require_answer(name, vector, rate)
    identity = digest(
        "hf",
        type(model).__name__,
        extractor.to_json_string(),
        layer,
        weights_hash(model),
        WINDOW_S,
        importlib.metadata.version("transformers"),
    )
    what = (
        f"mean over time of {'the last layer' if layer is None else f'hidden state {layer}'}"
        if not hasattr(model, "get_audio_features")
        else "mean"
    )
    note = f"{what} over windows of {padded_s or WINDOW_S:g} s at {rate:,} Hz"
    return [
        Encoder(name, each_waveform(name, rate, vector), count(model), identity=identity, note=note)
    ]


def hugging_face_with_code(name: str, argument: str, asked: Asked) -> list[Encoder]:
    """Row "hf-code": as :func:`hugging_face`, and the Python code that comes with the model is run. MERT needs it."""
    return hugging_face(name, argument, asked, trust_remote_code=True)


def _source_and_layer(argument: str) -> tuple[str, int | None]:
    source, layer = at_end(argument)
    if Path(argument).is_dir() or not layer.removeprefix("-").isdecimal():
        return argument, None
    return source, int(layer)


def _load(name: str, source: str, *, trust_remote_code: bool) -> tuple[Any, nn.Module]:
    """Feature extractor and model; complete, or refused: transformers itself only warns of missing weights and draws them."""
    try:
        import transformers
    except ImportError as error:
        raise RequestError(
            f"{name}: needs the package transformers: pip install 'patchifier[peers]'."
        ) from error
    how = {"trust_remote_code": trust_remote_code, "local_files_only": Path(source).is_dir()}
    try:
        with _quiet(transformers.utils.logging):
            extractor = transformers.AutoFeatureExtractor.from_pretrained(source, **how)
            model, info = transformers.AutoModel.from_pretrained(
                source, output_loading_info=True, **how
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = (
            ""
            if trust_remote_code
            else "; if the model brings its own code and you trust it, write hf-code:"
        )
        raise RequestError(
            f"{name}: transformers cannot load {source!r} ({first_line(error)}). Expected the id or folder of an audio model{hint}."
        ) from error
    if not getattr(extractor, "sampling_rate", None):
        raise RequestError(
            f"{name}: {source} has no sampling rate in its preprocessor_config.json, expected an audio model."
        )
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in UNUSED))
    if missing:
        raise RequestError(
            f"{name}: the weights of {source} lack {len(missing)} tensors, such as {missing[0]}: they would be random numbers."
        )
    if not hasattr(model, "get_audio_features") and getattr(
        model.config, "is_encoder_decoder", False
    ):
        model = model.get_encoder()  # a decoder needs text
    return extractor, model


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Load without transformers' report of unused weights and its bar; of missing ones there is a message of our own."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


@torch.inference_mode()
def _run(name: str, model: Any, inputs: Mapping[str, Any], layer: int | None) -> torch.Tensor:
    if hasattr(model, "get_audio_features"):  # a model of sound and text
        if layer is not None:
            raise RequestError(
                f"{name}: a {type(model).__name__} gives one vector for each sound, expected no @{layer}."
            )
        found = model.get_audio_features(**inputs)
        return getattr(found, "pooler_output", found)
    if layer is None:
        return model(**inputs).last_hidden_state
    states = model(**inputs, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise RequestError(
            f"{name}: there is no hidden state {layer}, expected 0 to {len(states) - 1}, or -1 for the last."
        )
    return states[layer]


def _pooled(name: str, states: torch.Tensor, share: float) -> np.ndarray:
    """Mean over the first `share` of time of (1, T, E), or (1, E) as it is: (E,)."""
    if states.ndim == 3:
        states = states[:, : max(1, round(share * states.shape[1]))].mean(1)
    if states.ndim != 2 or len(states) != 1:
        raise RequestError(
            f"{name}: the model gives {tuple(states.shape)} for one sound, expected (1, T, E) or (1, E)."
        )
    return states[0].float().cpu().numpy()


def windows(waveform: np.ndarray, length: int, *, shortest: int) -> list[np.ndarray]:
    """Cut a waveform (S,) into windows of `length` samples side by side, the last one anchored to the end; a short one is padded to `shortest`."""
    if len(waveform) <= length:
        return [np.pad(waveform, (0, max(0, shortest - len(waveform))))]
    starts = [*range(0, len(waveform) - length, length), len(waveform) - length]
    return [waveform[start : start + length] for start in starts]


# --- HEAR ---


def hear(name: str, argument: str, asked: Asked) -> list[Encoder]:
    """Row "hear": MODULE by import path, with or without @WEIGHTS, a file for its ``load_model``; PyTorch modules alone.

    The API is that of HEAR 2021: ``load_model``, ``get_scene_embeddings(audio (n, S), model)`` and the model's ``sample_rate``.

    Raises
    ------
    RequestError
        If the module cannot be imported, lacks a part of the API, or answers in another shape than it promises.
    """
    path, _, weights = argument.partition("@")
    module = _module(name, path)
    try:
        model = module.load_model(weights) if weights else module.load_model()
    except Exception as error:  # other people's code may raise anything
        raise RequestError(
            f"{name}: its load_model fails ({type(error).__name__}: {first_line(error)})."
        ) from error
    rate, size = getattr(model, "sample_rate", None), getattr(model, "scene_embedding_size", None)
    if not isinstance(rate, int | float) or int(rate) != rate or rate < 1000:
        raise RequestError(
            f"{name}: the model's sample_rate is {rate!r}, expected a whole number of Hz."
        )
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{name}: load_model gives {type(model).__name__}, expected a torch.nn.Module."
        )
    model = model.to(asked.device).eval()

    @torch.inference_mode()
    def vector(waveform: np.ndarray) -> np.ndarray:
        found = module.get_scene_embeddings(
            torch.from_numpy(waveform)[None].to(asked.device), model
        )  # (1, S) -> (1, E)
        if tuple(found.shape) != (1, size or found.shape[-1]):
            raise RequestError(
                f"{name}: get_scene_embeddings gives {tuple(found.shape)} for one sound, expected (1, {size or 'E'})."
            )
        return found[0].float().cpu().numpy()

    require_answer(name, vector, int(rate))
    identity = digest("hear", path, _source_hash(module), weights_hash(model))
    note = f"scene embedding at {int(rate):,} Hz"
    return [
        Encoder(
            name, each_waveform(name, int(rate), vector), count(model), identity=identity, note=note
        )
    ]


def _module(name: str, path: str) -> ModuleType:
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise RequestError(
            f"{name}: cannot import {path!r} ({error}). Install it, or add the folder that holds it to PYTHONPATH."
        ) from error
    lacking = [
        part
        for part in ("load_model", "get_scene_embeddings")
        if not callable(getattr(module, part, None))
    ]
    if lacking:
        raise RequestError(
            f"{name}: module {path} has no {' and no '.join(lacking)}, expected the HEAR API."
        )
    return module


def _source_hash(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""

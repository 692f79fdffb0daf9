"""Make ``embedding.npz``: 16-bit PCM and the embedding that a small seeded model gave it when this file was last run; ``NAME.npz``: those of a bundled model.

Run it with ``python tests/golden/make.py`` after a change that is meant to change embeddings, and say so in CHANGELOG.md; with
``python tests/golden/make.py NAME`` after a model was released.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tests import builders

from patchifier import weights
from patchifier.config import Config, update
from patchifier.embed import load
from patchifier.nn.model import Patchifier

PATH = Path(__file__).with_name("embedding.npz")
SAMPLE_RATE = 16_000  # not the model's, so that resampling is covered too
# Four positions, so that four seconds make two windows, of which the second is anchored to the end.
MODEL = {
    "channels": [4, 4, 8, 8, 16],
    "embed_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_dim": 32,
    "max_patches": 4,
    "vector_norm": "none",  # as when the file was made, and as models of the first edition have it
}
CHANGES = {
    "model": MODEL,
    "pretrain": {"n_patches": 4},
    "embed": {
        "pooling": "mean+std",
        "layers": [0, 1, -1],
        "hop_patches": 3,
        "silence_db": None,
        "mix_lfe": True,
    },
}


def make_pcm() -> np.ndarray:
    """Four seconds of two rising tones, noise that comes and goes, and a silence: (S,) int16."""
    time_s = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    tones = 0.3 * np.sin(2 * np.pi * (220 + 110 * time_s) * time_s) + 0.1 * np.sin(
        2 * np.pi * 3000 * time_s
    )
    noise = (
        np.random.default_rng(20).uniform(-0.2, 0.2, len(time_s)) * np.sin(2 * np.pi * time_s) ** 2
    )
    wave = (tones + noise) * ((time_s < 2.5) | (time_s > 3))
    return np.round(32767 * wave).astype(np.int16)


def make_model(config: Config) -> Patchifier:
    """Model with weights of its own, so that another way to initialise models, or to draw, changes nothing here."""
    model, chance = Patchifier(config), np.random.default_rng(11)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            of_a_norm = tensor.ndim == 1 and name.endswith("weight")  # these stay 1
            if name.startswith(("extractor", "bottleneck")) and not of_a_norm:
                scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
                tensor.copy_(torch.from_numpy(scale * chance.standard_normal(tensor.shape)))
    return model


def embed(pcm: np.ndarray) -> np.ndarray:
    """Embedding (E,) of stored samples."""
    config = update(Config(), CHANGES)
    embedder = builders.embedder(make_model(config), config)
    return embedder.embed(pcm.astype(np.float32) / 32768, sample_rate=SAMPLE_RATE)


def make(path: Path = PATH) -> None:
    """Write PCM and embedding."""
    pcm = make_pcm()
    np.savez(path, pcm=pcm, embedding=embed(pcm))


def embed_released(name: str, pcm: np.ndarray) -> dict[str, np.ndarray]:
    """Embeddings (E,) by a bundled model: of the stored samples, which are less than a window, and of 24 s of them, which are more."""
    embedder = load(name)
    wave = pcm.astype(np.float32) / 32768
    return {
        "short": embedder.embed(wave, SAMPLE_RATE),
        "long": embedder.embed(np.tile(wave, 6), SAMPLE_RATE),
    }


def make_released(name: str, folder: Path = PATH.parent) -> None:
    """Write embeddings by a bundled model."""
    np.savez(folder / f"{name}.npz", **embed_released(name, make_pcm()))


if __name__ == "__main__":
    if not sys.argv[1:]:
        make()
    for model in sys.argv[1:] or weights.names():
        make_released(model)

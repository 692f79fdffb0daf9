"""Embed audio files with an exported model; torch is not needed.

Make the model once, where torch is::

    patchifier export --onnx model.onnx

then, with ``pip install numpy soundfile soxr onnxruntime`` alone::

    python onnx_embed.py model.onnx song.mp3 another.flac --out vectors.npz
"""

import argparse
import sys

import numpy as np
import onnxruntime
import soundfile
import soxr


def read(path: str, sample_rate: int) -> np.ndarray:
    """Mono waveform (S,) float32 at `sample_rate`."""
    samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all() or not len(mono):
        raise ValueError("holds no audio, or NaN")
    return mono if own_rate == sample_rate else soxr.resample(mono, own_rate, sample_rate, quality="HQ")


class Model:
    """An exported model and the rate that it reads."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.sample_rate = int(self.session.get_modelmeta().custom_metadata_map["sample_rate"])

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        """Embedding (E,) of a waveform (S,); several of one length could share a call as (B, S)."""
        return self.session.run(["embedding"], {"waveform": waveform[None].astype(np.float32)})[0][0]


def main() -> int:
    """Embed every file that can be read, name those that cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", default="vectors.npz")
    asked, vectors = parser.parse_args(), {}
    model = Model(asked.model)
    for path in asked.files:
        try:
            vectors[path] = model.embed(read(path, model.sample_rate))
        except (soundfile.LibsndfileError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
    np.savez(asked.out, paths=np.array(list(vectors)), vectors=np.array(list(vectors.values())))
    return 0 if len(vectors) == len(asked.files) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Embed audio files with an exported model; torch is not needed.

patchifier export --onnx model.onnx              # once, where torch is
pip install numpy soundfile soxr onnxruntime     # then these alone; the next variable keeps
export ORT_DISABLE_TELEMETRY=1                   # onnxruntime from sending usage events
python onnx_embed.py model.onnx song.mp3 another.flac --out vectors.npz
"""

import argparse
import sys

try:
    import numpy as np
    import onnxruntime
    import soundfile
    import soxr
except ImportError as error:
    sys.exit(f"{error}: pip install numpy soundfile soxr onnxruntime")


def read(path: str, sample_rate: int) -> np.ndarray:
    """Mono waveform (S,) float32 at `sample_rate`."""
    with open(path, "rb") as stream:
        samples, own_rate = soundfile.read(stream, dtype="float32", always_2d=True)
    if not np.isfinite(mono := samples.mean(axis=1)).all() or not len(mono):
        raise ValueError("holds no audio, or NaN")
    return mono if own_rate == sample_rate else soxr.resample(mono, own_rate, sample_rate)


def load(path: str) -> tuple[onnxruntime.InferenceSession, int]:
    """An exported model, and the rate that it reads."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session, int(session.get_modelmeta().custom_metadata_map["sample_rate"])
    except Exception as error:  # onnxruntime has a class of its own for each fault
        sys.exit(f"{path}: not a model that 'patchifier export --onnx' wrote ({error!r})")


def main() -> int:
    """Embed every file that can be read, name those that cannot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", default="vectors.npz")
    asked, vectors = parser.parse_args(), {}
    model, sample_rate = load(asked.model)
    for path in asked.files:
        try:  # several of one length could share a call as (B, S)
            vectors[path] = model.run(None, {"waveform": read(path, sample_rate)[None]})[0][0]
        except (OSError, RuntimeError, ValueError) as e:  # soundfile's are among them
            print(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})", file=sys.stderr)
    try:
        np.savez(asked.out, paths=np.array(list(vectors)), vectors=np.array(list(vectors.values())))
    except OSError as error:
        sys.exit(f"{asked.out}: cannot be written ({error.strerror})")
    return 0 if len(vectors) == len(asked.files) else 1


if __name__ == "__main__":
    sys.exit(main())

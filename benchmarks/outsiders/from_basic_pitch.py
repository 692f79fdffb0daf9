"""basic-pitch (Bittner et al. 2022): a supervised transcriber of any instrument; what it hears of notes, averaged over the clip.

    python benchmarks/outsiders/from_basic_pitch.py CACHE --out features/basic-pitch

Needs basic-pitch==0.4.0 (Apache-2.0), installed without its dependencies, and onnxruntime: only the graph in its package is used.
"""

import importlib.util
import sys
from pathlib import Path

import features
import numpy as np
import onnxruntime

from patchifier.config import RequestError
from patchifier.evaluate.encoders import Encoder, each_waveform

SAMPLE_RATE = 22_050
SAMPLES = 2 * SAMPLE_RATE - 256  # that the graph hears at once
GRAPH = Path("saved_models", "icassp_2022", "nmp.onnx")


def encoder() -> Encoder:
    """Mean and deviation over time of contours (264), notes (88) and onsets (88): 880 numbers."""
    package = importlib.util.find_spec("basic_pitch")  # found, not run
    if package is None or not package.submodule_search_locations:
        raise RequestError(
            "basic-pitch is not installed: pip install --no-deps basic-pitch==0.4.0."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(package.submodule_search_locations[0]) / GRAPH
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    heard, outputs = (
        session.get_inputs()[0].name,
        sorted(output.name for output in session.get_outputs()),
    )

    def vector(waveform: np.ndarray) -> np.ndarray:
        """Windows side by side; a clip below 2 s is repeated."""
        whole = max(1, len(waveform) // SAMPLES) * SAMPLES
        windows = np.resize(waveform, whole).reshape(-1, 1, SAMPLES, 1)
        found = [session.run(outputs, {heard: window}) for window in windows]
        parts = [
            np.concatenate([values[0] for values in part]) for part in zip(*found, strict=True)
        ]  # (T, K) each
        return np.concatenate(
            [statistic(part, axis=0) for part in parts for statistic in (np.mean, np.std)]
        )

    return Encoder("basic-pitch", each_waveform("basic-pitch", SAMPLE_RATE, vector))


if __name__ == "__main__":
    asked = features.parser(__doc__).parse_args()
    sys.exit(features.write(encoder(), asked.cache, asked.out))

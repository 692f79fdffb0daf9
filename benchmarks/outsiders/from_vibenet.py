"""vibenet: a small supervised network for seven perceived attributes of music, distilled on FMA tracks.

    python benchmarks/outsiders/from_vibenet.py CACHE --out features/vibenet

Needs vibenet==0.1.0 (GPL-3, installed without its dependencies; the weights are in its package), onnx and onnxruntime.
"""

import importlib.resources
import sys

import features
import numpy as np
import onnx
import onnxruntime
import vibenet.core

from patchifier.evaluate.encoders import Encoder, each_waveform

SAMPLE_RATE = 16_000
LAYERS = ("pool", "trunk", "logits")  # 1,280, 256 and 7 numbers


def encoder(layer: str = "pool") -> Encoder:
    """One inner layer, through the package's own spectrogram."""
    session, output, parameters = _session(layer)

    def vector(waveform: np.ndarray) -> np.ndarray:
        return session.run(
            [output],
            {session.get_inputs()[0].name: vibenet.core.extract_mel(waveform, SAMPLE_RATE)[None]},
        )[0].ravel()

    name = f"vibenet-{layer}"
    return Encoder(name, each_waveform(name, SAMPLE_RATE, vector), parameters)


def _session(layer: str) -> tuple[onnxruntime.InferenceSession, str, int]:
    """Network with that layer as an output, the name of the output, and the learned numbers."""
    model = onnx.load(
        str(importlib.resources.files("vibenet") / "artifacts" / "efficientnet_model.onnx")
    )
    nodes = model.graph.node
    pooled = next(node.input[0] for node in nodes if node.op_type == "LayerNormalization")
    trunk = next(node.output[0] for node in nodes if node.op_type == "Gelu")
    output = {"pool": pooled, "trunk": trunk, "logits": model.graph.output[0].name}[layer]
    if layer != "logits":
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return (
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ),
        output,
        parameters,
    )


if __name__ == "__main__":
    arguments = features.parser(__doc__)
    arguments.add_argument("--layer", choices=LAYERS, default="pool")
    asked = arguments.parse_args()
    sys.exit(features.write(encoder(asked.layer), asked.cache, asked.out))

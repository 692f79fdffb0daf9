"""Waveform in, embedding out, as an ONNX file that runs without torch.

The whole of :meth:`patchifier.embed.Embedder.embed` is in the graph: log-mel, patches, windows,
model, pooling, mean over windows. Every sequence has the trained length: windows of shorter sounds
are masked, as they are in a batch.

The Fourier transform is ONNX's own, in float64: in float32 onnxruntime's is not exact enough beside
a loud tone. What remains is torch's rounding: embeddings agree to 1e-5, and to 1e-4 for a pure tone
of 16 bits. Only a pure tone that was never quantised can differ by more, for between the floor of
-100 dB and about -85 dB the bands beside it hold nothing but rounding errors. Standardised
summaries, as patchifier-base has them, are numbers of deviation 1 over music, and enlarge what
hardly varies: music and noise agree to 1e-4, a constant to 1e-3, a pure tone of 16 bits to 2e-2,
each in the number of 820 that is furthest.

The same graph can be had as a program of ``torch.export``, for those who have torch but not this
package.

Shapes: B sounds of one length, S samples, T frames, N patches, K windows of L patches, F
frequencies.
"""

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchifier.checkpoint import checkpoint_of, load, without_other_statistics
from patchifier.config import Config, RequestError
from patchifier.embed import Embedder
from patchifier.extras import need
from patchifier.filters import filter_banks, low_pass
from patchifier.io import replaced_file
from patchifier.nn.fast import accelerate
from patchifier.nn.graphs import exportable
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import window_embeddings
from patchifier.windows import window_patches

OPSET = 18


def export(model: Embedder | str | Path | None, path: str | Path) -> Path:
    """Write a model as one file: ONNX, or a program of ``torch.export``.

    Parameters
    ----------
    model : Embedder, or str or Path
        A model, or what :func:`patchifier.load` takes; None is the bundled model.
    path : str or Path
        The file to write, whole or not at all; one that is there already is replaced. With the
        suffix ".pt2" it is what ``torch.export.load`` reads, with ".onnx" ONNX.

    Returns
    -------
    Path
        The file. Its input "waveform" is (B, S) float32 in [-1, 1] at the rate in its metadata
        ("sample_rate"), 22,050 Hz in the paper's setting; its output "embedding" is (B, E) float32.
        B and S are free, from one sample on. Memory grows with B S: long pieces take most of it for
        the transform. A program of torch takes the one and gives the other; its metadata are in the
        extra file "metadata.json".

    Raises
    ------
    RequestError
        If the name ends in neither .onnx nor .pt2, the model's settings have no place in a graph,
        or onnx is not installed.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise RequestError(f"the file is {path}, expected a name that ends in .onnx or .pt2.")
    onnx = need("onnx")
    need("onnxscript")
    held = checkpoint_of(model) if isinstance(model, Embedder) else load(model)
    bare, config = without_other_statistics(held.model, held.config)
    program = _exported(Graph(accelerate(bare), config).eval(), config)
    facts = {
        "sample_rate": str(config.spectrogram.sample_rate),
        "size": str(config.embedding_size),
        "embed": json.dumps(vars(config.embed)),
    }
    with replaced_file(path) as new:
        new.write_bytes(
            _torch_bytes(program, facts)
            if path.suffix == ".pt2"
            else _onnx_bytes(onnx, program, facts)
        )
    return path


def _onnx_bytes(onnx: Any, program: Any, facts: dict[str, str]) -> bytes:
    proto = program.model_proto
    onnx.helper.set_model_props(proto, facts)
    return proto.SerializeToString()


def _torch_bytes(program: Any, facts: dict[str, str]) -> bytes:
    """The exported program of the graph as bytes."""
    held = io.BytesIO()
    with exportable():
        torch.export.save(
            program.exported_program, held, extra_files={"metadata.json": json.dumps(facts)}
        )
    return held.getvalue()


def _exported(graph: nn.Module, config: Config) -> Any:
    example = torch.zeros(2, round(3.3 * config.spectrogram.sample_rate))
    sizes = {0: torch.export.Dim("sounds"), 1: torch.export.Dim("samples")}
    with exportable(), torch.no_grad():
        return torch.onnx.export(
            graph,
            (example,),
            input_names=["waveform"],
            output_names=["embedding"],
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class Graph(nn.Module):
    """From a waveform to an embedding in operations that ONNX has: what :func:`export` writes.

    Parameters
    ----------
    model : Patchifier
        In evaluation mode.
    config : Config
        What it was made with.
    """

    def __init__(self, model: Patchifier, config: Config) -> None:
        super().__init__()
        if config.embed.whole_clip:
            raise RequestError(
                "embed.whole_clip is true, so positions depend on the length: a graph needs it to "
                "be false."
            )
        if config.spectrogram.reference != "absolute" or config.spectrogram.top_db is not None:
            raise RequestError(
                "spectrogram.reference or top_db depend on the clip's maximum, expected "
                "'absolute' and no top_db."
            )
        self.model, self.config = model, config
        self.length, self.hop = window_patches(config)
        self.steps = []
        self.register_buffer("low_pass", torch.from_numpy(low_pass()).float()[None, None])
        for number, (step, window, filters) in enumerate(filter_banks(config.spectrogram)):
            self.steps.append(step)
            self.register_buffer(f"window_{number}", torch.from_numpy(window).float())
            self.register_buffer(f"filters_{number}", torch.from_numpy(filters).float())

    def forward(self, waveform: Tensor) -> Tensor:
        """Embed waveforms (B, S): (B, E)."""
        log_mel = self.log_mel(waveform)  # (B, M, T)
        windows, new = self.windows(log_mel)  # (B, K, L, M, W), (K, L)
        B, K, L = windows.shape[:3]
        # (B K, L, D)
        vectors = self.model.extractor(windows.flatten(0, 2).unsqueeze(1)).unflatten(0, (B * K, L))
        new = new.expand(B, K, L).flatten(0, 1)  # (B K, L)
        bottleneck = self.model.bottleneck
        layers = [vectors, *bottleneck.forward_layers(bottleneck.embed(vectors), new > 0)]
        return (
            window_embeddings(self.model, self.config, layers, new, windows.flatten(0, 1))
            .unflatten(0, (B, K))
            .mean(1)
        )

    def log_mel(self, waveform: Tensor) -> Tensor:
        """:func:`patchifier.spectrogram.log_mel` of waveforms (B, S): (B, M, T)."""
        config = self.config.spectrogram
        T = waveform.shape[-1] // config.hop_length + 1
        rows = []
        for number, step in enumerate(self.steps):
            # (n_fft / step,), (M', F)
            window, filters = (
                self.get_buffer(f"window_{number}"),
                self.get_buffer(f"filters_{number}"),
            )
            half = step * len(window) // 2
            padded = nn.functional.pad(waveform, (half, half))
            if step == 2:
                taps = self.get_buffer("low_pass")
                padded = nn.functional.conv1d(
                    padded[:, None], taps, stride=2, padding=taps.shape[-1] // 2
                )[:, 0]
            # (T, n_fft / step)
            index = (
                torch.arange(T)[:, None] * (config.hop_length // step) + torch.arange(len(window))
            ).to(waveform.device)
            # (B, T, F, 2)
            parts = torch.view_as_real(torch.fft.rfft((padded[:, index] * window).double())).float()
            rows.append(filters @ parts.square().sum(-1).transpose(-1, -2))  # (B, M', T)
        return (
            10
            * config.db_scale
            * torch.log10(torch.cat(rows, dim=1).clamp(min=10 ** (config.min_db / 10)))
        )

    def windows(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (B, K, L, M, W) of log-mels (B, M, T), and new frames of each patch (K, L).

        The rule is that of :func:`patchifier.windows.windows_of`: patches touch, windows start a
        hop apart, the last patch and the last window are anchored to the end. One formula for every
        length, as a graph has no branches.
        """
        W, L, hop = self.config.model.patch_frames, self.length, self.hop
        T = log_mel.shape[-1]
        N = (T + W - 1) // W
        K = 1 + torch.sym_max(0, (N - L + hop - 1) // hop)
        first = (torch.arange(K) * hop).clamp(max=torch.sym_max(N - L, 0))  # (K,), patches
        number = first[:, None] + torch.arange(L)  # (K, L)
        # frames; beyond the last patch it is that patch again, and masked
        start = (number * W).clamp(max=torch.sym_max(T - W, 0))
        padded = nn.functional.pad(log_mel, (0, W), value=self.config.spectrogram.silence)
        index = (start[..., None] + torch.arange(W)).to(log_mel.device)  # (K, L, W)
        # what is shorter than a patch is one, with the silence behind it
        new = (torch.sym_max(T, W) - number * W).clamp(0, W)
        return padded[..., index].movedim(1, 3), new.to(log_mel.device)

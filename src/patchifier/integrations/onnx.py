"""Waveform in, embedding out, as an ONNX file that runs without torch.

The whole of :meth:`patchifier.embed.Embedder.embed` is in the graph: log-mel, patches, windows,
model, pooling, mean over windows. Every sequence has the trained length: windows of shorter sounds
are masked, as they are in a batch.

The Fourier transform is the runtime's, as products of matrices: ONNX's own takes ten times as long,
and in float32 it is not exact enough beside a loud tone. What remains is rounding: embeddings agree
to 1e-5, and to 1e-4 for a pure tone of 16 bits. Only a pure tone that was never quantised can
differ by more, for between the floor of -100 dB and about -85 dB the bands beside it hold nothing
but rounding errors. Standardised summaries, as patchifier-base has them, are numbers of deviation 1
over music, and enlarge what hardly varies: music and noise agree to 1e-4, a constant to 2e-3, a
pure tone of 16 bits to 4e-2, each in the number that is furthest.

The same graph can be had as a program of ``torch.export``, for those who have torch but not this
package.

Shapes: B sounds of one length, S samples, T frames, N patches, K windows of L patches, F
frequencies.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier.checkpoint import checkpoint_of, load, without_other_statistics
from patchifier.config import Config, RequestError
from patchifier.embed import Embedder
from patchifier.extras import need
from patchifier.filters import BLOCK, TAPS, half_rate_matrix, low_pass
from patchifier.io import replaced_file
from patchifier.nn.graphs import exportable, for_graphs
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import window_embeddings
from patchifier.nn.shared_patches import SharedPatches
from patchifier.spectrogram import Bank, banks
from patchifier.windows import window_patches

OPSET = 18
FLOAT32 = np.dtype(np.float32)


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

    Examples
    --------
    >>> import onnxruntime
    >>> session = onnxruntime.InferenceSession(export("patchifier-paper", "paper.onnx"))
    >>> waveforms = np.zeros((2, 22_050), np.float32)
    >>> session.run(["embedding"], {"waveform": waveforms})[0].shape
    (2, 512)
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise RequestError(f"the file is {path}, expected a name that ends in .onnx or .pt2.")
    onnx = need("onnx")
    need("onnxscript")
    held = checkpoint_of(model) if isinstance(model, Embedder) else load(model)
    bare, config = without_other_statistics(held.model, held.config)
    program = _exported(Graph(for_graphs(bare), config).eval(), config)
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
    """From a waveform to an embedding in operations that ONNX has: what :func:`export` writes."""

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
        self.banks = nn.ModuleList(_Bank(bank) for bank in banks(config.spectrogram, FLOAT32))

    def forward(self, waveform: Tensor) -> Tensor:
        """Embed waveforms (B, S): (B, E)."""
        patches, new = self.patches(self.log_mel(waveform))  # (B, N, M, W), (N,)
        index, new, is_window = self.windows(patches, new)  # (B, K, L), (B, K, L), (B, K)
        rows = patches.flatten(0, 1)  # (B N, M, W)
        vectors = self.model.extractor(rows.unsqueeze(1))[index].flatten(0, 1)  # (B K, L, D)
        new = new.flatten(0, 1)  # (B K, L)
        bottleneck = self.model.bottleneck
        layers = [vectors, *bottleneck.forward_layers(bottleneck.embed(vectors), new > 0)]
        of_windows = SharedPatches(rows, index.flatten(0, 1))
        pooled = window_embeddings(self.model, self.config, layers, new, of_windows)
        pooled = pooled.unflatten(0, is_window.shape) * is_window[..., None]
        return pooled.sum(1) / is_window.sum(1, keepdim=True)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """:func:`patchifier.spectrogram.log_mel` of waveforms (B, S): (B, M, T)."""
        config = self.config.spectrogram
        T = 1 + waveform.shape[-1] // config.hop_length
        least, rows = 10 ** (config.min_db / 10), []
        for bank in self.banks:
            assert isinstance(bank, _Bank)
            power = bank(waveform, config.hop_length)
            levels = 10 * config.db_scale * torch.log10(power.clamp(min=least))
            rows.append(levels.repeat_interleave(bank.every, dim=2)[..., :T])
        return torch.cat(rows, dim=1)

    def patches(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Cut log-mels (B, M, T) into patches (B, N, M, W), with the new frames of each (N,).

        Patches touch, the last one is anchored to the end; what is shorter than a patch is one,
        with silence behind it.
        """
        W, T = self.config.model.patch_frames, log_mel.shape[-1]
        number = torch.arange((T + W - 1) // W)
        new = (torch.sym_max(T, W) - number * W).clamp(0, W)
        padded = nn.functional.pad(log_mel, (0, W), value=self.config.spectrogram.silence)
        start = (number * W).clamp(max=torch.sym_max(T - W, 0))  # (N,), frames
        frames = (start[:, None] + torch.arange(W)).to(log_mel.device)  # (N, W)
        return padded[..., frames].movedim(1, 2), new.to(log_mel.device)

    def windows(self, patches: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of patches (B, N, M, W) with new frames (N,).

        The rule is that of :func:`patchifier.windows.windows_of` without silence: windows start a
        hop apart, the last one is anchored to the end. One formula for every length, as a graph has
        no branches.

        Returns
        -------
        index : Tensor, shape (B, K, L)
            Patches of each window, counted over the batch.
        new : Tensor, shape (B, K, L)
            New frames of each patch, 0 where it is padding.
        is_window : Tensor, shape (B, K)
            1, or 0 for what is there only because another row of the batch has more windows.
        """
        (B, N), L, hop = patches.shape[:2], self.length, self.hop
        order, count = self.sounding(patches, new)  # (B, N), (B,)
        K = 1 + torch.sym_max(0, (N - L + hop - 1) // hop)
        start, place = torch.arange(K).to(new) * hop, torch.arange(L).to(new)
        last = (count[:, None] - L).clamp(min=0)  # (B, 1), where the last window starts
        number = torch.minimum(start, last)[..., None] + place  # (B, K, L)
        index = order.gather(1, number.clamp(max=N - 1).flatten(1)).reshape(B, K, L)
        new = new[index] * (number < count[:, None, None])
        offset = torch.arange(B * N).to(new).reshape(B, N)[:, :1, None]
        return index + offset, new, (start - hop < last).to(patches.dtype)

    def sounding(self, patches: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Order (B, N) of patches in which silent ones are last, and how many are not (B,).

        That of :func:`patchifier.windows.without_silence`.
        """
        (B, N), silence_db = patches.shape[:2], self.config.embed.silence_db
        number = torch.arange(N).to(new)
        if silence_db is None:
            order = number.expand(B, N)
            return order, order.amax(1) + 1
        W, mels = patches.shape[-1], self.config.spectrogram.n_mels
        is_new = torch.arange(W).to(new) >= W - new[:, None]  # (N, W)
        is_loud = patches[:, :, :mels].amax(2) > silence_db * self.config.spectrogram.db_scale
        sounds = (is_loud & is_new).any(2)  # (B, N)
        kept = sounds | (~sounds.any(1, keepdim=True) & (number < self.length))
        rank = torch.where(kept, number, number + number.amax(0) + 1)
        return rank.argsort(1), kept.sum(1)


class _Bank(nn.Module):
    """Bands that share a Fourier transform: :class:`patchifier.spectrogram.Bank` in torch."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        power = bank.power
        self.step, self.every, self.n, self.factors, self.mirrored = (
            bank.step,
            bank.every,
            power.n,
            power.factors,
            power.mirrored,
        )
        p, q, _ = self.factors
        constant = np.zeros((2 * power.rows, 1), np.float32)
        constant[power.places] = power.constant
        tensors = {
            "first": power.first,
            "second": power.second,
            "second_real": power.second_real,
            "third": power.third,
            "third_mirrored": power.third_mirrored,
            "constant": constant.reshape(-1, q, p, 1).transpose(2, 1, 0, 3),  # (p, q, 2 D, 1)
            "half_rate": half_rate_matrix(FLOAT32),
        }
        self.groups = []
        for number, (first, filters) in enumerate(bank.groups):
            self.groups.append((first, first + filters.shape[1]))
            tensors[f"filters_{number}"] = filters
        for name, array in tensors.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))

    def forward(self, waveform: Tensor, hop: int) -> Tensor:
        """Power (B, M', T / every) in each band of waveforms (B, S)."""
        T = waveform.shape[-1] // hop + 1
        half, every = self.step * self.n // 2, self.every
        later = (every - 1) * hop // 2  # the middle of the frames that a transform stands for
        padded = nn.functional.pad(waveform, (half - later, half + later))
        if self.step == 2:
            padded = self.at_half_rate(padded)
        groups = (T + every - 1) // every
        power = self.power(*self.frames(padded, every * hop // self.step, groups))  # (B, F, T)
        rows = [
            self.get_buffer(f"filters_{number}") @ power[:, first:last]
            for number, (first, last) in enumerate(self.groups)
        ]
        return torch.cat(rows, dim=1)

    def power(self, frames: Tensor, level: Tensor) -> Tensor:
        """:class:`patchifier.power.PowerSpectrum` of frames (B, n, T) of level (B, 1, T)."""
        (p, q, r), M = self.factors, self.mirrored
        columns = (frames - level).unflatten(1, (p, q, r)).permute(0, 2, 3, 1, 4)
        columns = (self.get_buffer("first") @ columns).permute(0, 2, 3, 1, 4)  # (B, r, p, q, T)
        real, both = columns[:, :, : p - 2 * M], columns[:, :, p - 2 * M :]
        real = self.get_buffer("second_real") @ real  # (B, r, 1 or 2, 2 q, T)
        both = self.get_buffer("second") @ both.unflatten(2, (M, 2)).flatten(3, 4)
        rows = torch.cat([real[:, :, :1], both, real[:, :, 1:]], dim=2)  # (B, r, C, 2 q, T)
        rows = rows.permute(0, 2, 3, 1, 4)  # (B, C, 2 q, r, T)
        rows = rows.unflatten(2, (q, 2)).flatten(3, 4)  # (B, C, q, 2 r, T)
        conjugates = rows[:, 1 : 1 + M].flip(1, 2)
        parts = [
            self.get_buffer("third") @ rows,
            self.get_buffer("third_mirrored") @ conjugates,
        ]  # (B, C or M, q, 2 D, T)
        both = torch.cat(parts, dim=1) + self.get_buffer("constant") * level[:, :, None, None]
        squares = (both * both).unflatten(3, (2, -1)).sum(3)  # (B, p, q, D, T)
        return squares.permute(0, 3, 2, 1, 4).flatten(1, 3)

    def at_half_rate(self, waveform: Tensor) -> Tensor:
        """:func:`patchifier.filters.at_half_rate` of waveforms (B, S): (B, S / 2), rounded up."""
        S = waveform.shape[-1]
        count = (S + 1) // 2
        blocks = (count + BLOCK - 1) // BLOCK
        behind = 2 * BLOCK * (blocks + 1) - TAPS // 2 - S
        pairs = nn.functional.pad(waveform, (TAPS // 2, behind)).unflatten(-1, (-1, 2))
        others, middles = pairs[..., 0].unflatten(-1, (-1, BLOCK)), pairs[..., 1]
        rows = torch.cat([others[:, :-1], others[:, 1:, : TAPS // 2]], dim=-1)
        found = (rows @ self.get_buffer("half_rate")).flatten(1)[:, :count]
        middle = TAPS // 4  # the tap in the middle is of the other samples
        return found + float(low_pass()[TAPS // 2]) * middles[:, middle : middle + count]

    def frames(self, samples: Tensor, hop: int, T: int) -> tuple[Tensor, Tensor]:
        """Frames (B, n, T) that start every `hop` of the samples (B, S), and their means.

        The mean (B, 1, T) is that of the hops that a frame touches.
        """
        each = -(-self.n // hop)
        behind = hop * (T + each - 1) - samples.shape[-1]
        rows = nn.functional.pad(samples, (0, behind)).unflatten(-1, (-1, hop))  # (B, R, hop)
        means, rows = rows.mean(-1)[:, None], rows.transpose(1, 2)
        level = torch.stack([means[..., first : first + T] for first in range(each)]).mean(0)
        shifted = [rows[..., first : first + T] for first in range(each)]  # (B, hop, T) each
        return torch.cat(shifted, dim=1)[:, : self.n], level

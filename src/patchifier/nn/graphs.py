"""A model as two functions of arrays, for torch and for ONNX.

:class:`WindowGraph` gives the vectors of windows, :class:`ReconstructGraph` predicts masked ones.
:func:`window_graph` and :func:`reconstruct_graph` write them as ONNX graphs without weights, which
:mod:`patchifier.graph` runs with those of ``model.safetensors``.

Shapes: P patches, B windows, N patches of a window, M rows, T frames in a patch, E embedding size,
C outputs of a head.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchifier import tasks
from patchifier.config import (
    AugmentConfig,
    Config,
    EmbedConfig,
    FinetuneConfig,
    PretrainConfig,
    RequestError,
)
from patchifier.devices import onnx_runtime
from patchifier.extras import need
from patchifier.graph import WEIGHTS
from patchifier.nn.model import FeatureExtractor, Head, Patchifier
from patchifier.nn.pitch import PitchModules, group_frames
from patchifier.nn.pooling import pool, window_embeddings
from patchifier.nn.shared_patches import SharedPatches
from patchifier.tasks import Task

OPSET = 18
MOST_GRAPHS = 64  # that are kept: each has 0.1 to 0.3 MB and takes 0.3 to 1 s to write
FEW_CELLS = 2  # of a map to compute: ONNX Runtime reads the kernel anew for each patch


class GraphConvolution(nn.Conv2d):
    """A convolution that is one matrix where it computes few cells.

    ONNX Runtime makes the matrix once, with the session. It serves a whole batch, and the taps of a
    3 x 3 kernel that lie beside the map cost nothing.

    Attributes
    ----------
    along_width : bool
        Whether maps come transposed: frequency along the width.
    """

    along_width = False

    def forward(self, maps: Tensor) -> Tensor:
        """Turn maps (P, C, H, W) into maps (P, O, H', W')."""
        kernel = self.weight.transpose(2, 3) if self.along_width else self.weight
        H, W, stride = int(maps.shape[-2]), int(maps.shape[-1]), self.stride[0]
        cells = H // stride, W // stride
        if self.kernel_size != (3, 3) or cells[0] * cells[1] > FEW_CELLS:
            return self._conv_forward(maps, kernel, self.bias)
        before, behind = ([max(0, n - far) for n in (H, W)] for far in (stride + 1, 2))
        kernel = nn.functional.pad(kernel, (before[1], behind[1], before[0], behind[0]))
        first = 1 + before[0], 1 + before[1]  # tap of the first cell of the map
        seen = [
            kernel.narrow(2, first[0] - stride * y, H).narrow(3, first[1] - stride * x, W)
            for y in range(cells[0])
            for x in range(cells[1])
        ]
        matrix = torch.stack(seen, dim=1).flatten(2).flatten(0, 1)  # (O H' W', C H W)
        return nn.functional.linear(maps.flatten(1), matrix).unflatten(1, (-1, *cells))


class GraphSequenceConvolution(nn.Conv1d):
    """A convolution with one channel out and a kernel of all shifts, as one matrix."""

    def forward(self, values: Tensor) -> Tensor:
        """Turn values (B, C, L) into values (B, 1, L)."""
        length, reach = int(values.shape[-1]), self.kernel_size[0] // 2
        if self.out_channels > 1 or reach != length - 1 or self.padding_mode != "zeros":
            return super().forward(values)
        order = torch.arange(length)
        shifted = self.weight[0][:, reach + order - order[:, None]]  # (C, L', L)
        matrix = shifted.transpose(0, 1).flatten(1)  # (L', C L)
        return nn.functional.linear(values.flatten(1), matrix, self.bias)[:, None]


class GraphExtractor(FeatureExtractor):
    """Frequency along the width of a map: ONNX Runtime computes cells of a row together."""

    def maps(self, mel: Tensor) -> Tensor:
        """Turn mel bands (P, M, T) into maps (P, C, M / 32, T / 32)."""
        for module in self.down.modules():
            if isinstance(module, GraphConvolution):
                module.along_width = True
        return self.down(mel.transpose(1, 2)[:, None]).transpose(2, 3)


class GraphPitchModules(PitchModules):
    """Pitch bands along the width of a map: ONNX Runtime computes cells of a row together."""

    def forward(self, rows: Tensor) -> Tensor:
        """Turn patches, mel bands first (P, n_mels + M, T), into features (P, C * M / 6)."""
        groups = group_frames(rows, self.n_mels)  # (P, M, T / 4)
        maps = groups.transpose(1, 2).unsqueeze(2)  # (P, T / 4, 1, M)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = norm(along_width(convolution, maps)).relu()
        return maps.flatten(1)


def along_width(convolution: nn.Conv2d, maps: Tensor) -> Tensor:
    """Convolve maps (P, C, 1, M) by a kernel of one column."""
    assert isinstance(convolution.padding, tuple)
    stride, padding = convolution.stride[::-1], convolution.padding[::-1]
    kernel, dilation = convolution.weight.transpose(2, 3), convolution.dilation[::-1]
    return nn.functional.conv2d(maps, kernel, None, stride, padding, dilation)


FOR_GRAPHS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: GraphSequenceConvolution,
    nn.Conv2d: GraphConvolution,
    FeatureExtractor: GraphExtractor,
    PitchModules: GraphPitchModules,
}


def for_graphs(model: Patchifier) -> Patchifier:
    """Replace modules, in place, by those that ONNX Runtime runs in less time, and return it."""
    for module in model.modules():
        module.__class__ = FOR_GRAPHS.get(type(module), type(module))
    return model


class WindowGraph(nn.Module):
    """From patches to the vectors of windows.

    Parameters
    ----------
    model : Patchifier
        In evaluation mode.
    config : Config
        What it was made with.
    head, task : Head, Task
        Of a fine-tuned model.
    """

    def __init__(
        self, model: Patchifier, config: Config, head: Head | None = None, task: Task | None = None
    ) -> None:
        super().__init__()
        self.model, self.config, self.head, self.task = model, config, head, task

    def forward(self, patches: Tensor, index: Tensor, n_new_frames: Tensor) -> list[Tensor]:
        """Vectors (B, E), vectors of patches in their context (B, N, E'), and predictions (B, C).

        Parameters
        ----------
        patches : Tensor, shape (P, 1, M, T)
        index, n_new_frames : Tensor, shape (B, N), int64
            As in :class:`patchifier.windows.Batch`. There are predictions if there is a head.
        """
        vectors = self.model.extractor(patches)[index]  # (B, N, D)
        valid = n_new_frames > 0
        bottleneck = self.model.bottleneck
        sequences = bottleneck.forward_layers(bottleneck.embed(vectors, valid=valid), valid)
        layers, N = [vectors, *sequences], index.shape[1]
        windows = SharedPatches(patches.squeeze(1), index) if self.config.embed.summaries else None
        found = [
            window_embeddings(self.model, self.config, layers, n_new_frames, windows),
            torch.cat([layers[layer][:, -N:] for layer in self.config.embed.layers], dim=-1),
        ]
        if self.head is not None and self.task is not None:
            pooled = pool(layers[-1], valid, self.config.finetune.pooling)
            found.append(tasks.activate(self.task, self.head(pooled)))
        return found


class ReconstructGraph(nn.Module):
    """From patches and a mask to all patches as stage II decodes them."""

    def __init__(self, model: Patchifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        """Mel bands (N, 1, n_mels, T) of patches (N, 1, M, T); `mask` (N,) is True where masked."""
        bottleneck = self.model.bottleneck
        order = torch.arange(mask.shape[0])  # else the exporter fixes N to that of its example
        vectors = self.model.extractor(patches)[order][None]  # (1, N, D)
        sequence = bottleneck.forward_layers(bottleneck.embed(vectors, mask[None]))[-1]
        return self.model.forward_decoder(sequence[0, 1:])


def has_window_graph(config: Config) -> bool:
    """Whether the vectors of windows are a graph; positions of whole clips depend on the length."""
    return not config.embed.whole_clip


def has_reconstruct_graph(config: Config) -> bool:
    """Whether reconstruction is a graph: one without a predictor."""
    return not config.model.n_predictor_layers


def window_graph(config: Config, task: Task | None = None) -> bytes:
    """ONNX graph of :class:`WindowGraph`: inputs "patches", "index", "n_new_frames".

    Outputs are "vectors", "patch_vectors" and, with a task, "predictions".

    Raises
    ------
    RequestError
        If onnx is not installed, or the settings have no graph.
    """
    if not has_window_graph(config):
        raise RequestError(
            "embed.whole_clip is true, so positions depend on the length: a graph needs it to be "
            "false."
        )
    named = task and Task(task.kind, tuple(map(str, range(len(task.names)))))
    return _window_graph(_settings(config), named)


@functools.lru_cache(maxsize=MOST_GRAPHS)
def _window_graph(config: Config, task: Task | None) -> bytes:
    head = Head(config.model.embed_dim, len(task.names)) if task else None
    T = config.model.patch_frames
    patches = torch.zeros(5, 1, config.spectrogram.n_bands, T)
    index = torch.tensor([[0, 1, 2], [2, 3, 4]])
    n_new_frames = torch.tensor([[T, T, 3], [T, 0, 0]])
    return _export(
        WindowGraph(for_graphs(Patchifier(config)), config, head, task),
        {"patches": patches, "index": index, "n_new_frames": n_new_frames},
        {"patches": "P", "index": "BN", "n_new_frames": "BN"},
        ["vectors", "patch_vectors", *(["predictions"] if task else [])],
    )


def reconstruct_graph(config: Config) -> bytes:
    """ONNX graph of :class:`ReconstructGraph`: inputs "patches" and "mask", output "reconstructed".

    Raises
    ------
    RequestError
        If onnx is not installed, or the settings have no graph.
    """
    if not has_reconstruct_graph(config):
        raise RequestError(
            "model.n_predictor_layers is above 0: a graph of the reconstruction needs 0."
        )
    return _reconstruct_graph(dataclasses.replace(_settings(config), embed=EmbedConfig()))


@functools.lru_cache(maxsize=MOST_GRAPHS)
def _reconstruct_graph(config: Config) -> bytes:
    patches = torch.zeros(3, 1, config.spectrogram.n_bands, config.model.patch_frames)
    return _export(
        ReconstructGraph(for_graphs(Patchifier(config))),
        {"patches": patches, "mask": torch.tensor([False, True, False])},
        {"patches": "N", "mask": "N"},
        ["reconstructed"],
    )


def _settings(config: Config) -> Config:
    """A config with the settings on which a graph depends; the others are the defaults."""
    plain = EmbedConfig()
    return dataclasses.replace(
        config,
        embed=dataclasses.replace(
            config.embed,
            hop_patches=plain.hop_patches,
            silence_db=plain.silence_db,
            mix_lfe=plain.mix_lfe,
        ),
        pretrain=PretrainConfig(n_patches=2),  # as few as any model takes
        finetune=dataclasses.replace(FinetuneConfig(), pooling=config.finetune.pooling),
        augment=AugmentConfig(),
    )


def _export(
    graph: nn.Module, example: dict[str, Tensor], axes: dict[str, str], outputs: list[str]
) -> bytes:
    """Trace a graph; `axes` has a letter for each first axis of an input that is of any size.

    torch's exporter by tracing takes 1 s where the one by torch.export takes 30 s. It keeps the
    names of weights.
    """
    onnx, file = need("onnx"), io.BytesIO()
    with exportable(), torch.no_grad():
        _make_distinct(graph)
        graph.eval()(*example.values())  # constants are computed now, not in the graph
        torch.onnx.export(
            graph.eval(),
            tuple(example.values()),
            file,  # type: ignore[arg-type]
            input_names=list(example),
            output_names=outputs,
            dynamic_axes={name: dict(enumerate(letters)) for name, letters in axes.items()},
            opset_version=OPSET,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # batch norm keeps its own weights
        )
    proto = onnx.load_from_string(file.getvalue())
    return _simplified(onnx, proto, set(graph.state_dict())).SerializeToString(deterministic=True)


def _make_distinct(graph: nn.Module) -> None:
    """Draw all weights, since the exporter makes one of two weights with equal values."""
    draws = torch.Generator().manual_seed(0)
    for tensor in graph.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=draws)


def _simplified(onnx: Any, proto: Any, names: set[str]) -> Any:
    """A graph without the values of weights, whose constant parts are computed.

    ONNX Runtime computes them: each of its sessions would take twice as long to make. Weights are
    inputs in the meantime, so that they are no constants.
    """
    graph, inputs = proto.graph, [*proto.graph.input]
    held = [tensor for tensor in graph.initializer if tensor.name in names]
    for tensor in held:
        kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        graph.input.append(kind)
        graph.initializer.remove(tensor)
    found = _optimised(onnx, proto)
    del found.graph.input[:], found.opset_import[:]
    found.graph.input.extend(inputs)
    found.opset_import.extend(proto.opset_import)
    constants = [*found.graph.initializer]
    del found.graph.initializer[:]
    found.graph.initializer.extend(_without_values(onnx, tensor) for tensor in held)
    found.graph.initializer.extend(constants)
    for part in (found, found.graph, *found.graph.node, *found.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*found.graph.input, *found.graph.output):
        value.ClearField("metadata_props")
    found.graph.ClearField("value_info")
    return found


def _optimised(onnx: Any, proto: Any) -> Any:
    """A model after those optimisations of ONNX Runtime that hold for any processor."""
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "graph.onnx")
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(options.optimized_model_filepath)


def _without_values(onnx: Any, tensor: Any) -> Any:
    """Weights with the name of their file in place of their values."""
    for field in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=WEIGHTS)
    return tensor


@contextlib.contextmanager
def exportable() -> Iterator[None]:
    """Attention in single operations, as ONNX has no fused layer; no warnings of the exporter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(before)

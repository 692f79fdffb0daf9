"""A trained model as a folder: weights, config, graphs and a card (:mod:`patchifier.model_folder`).

It is written beside and renamed into place. Loading is strict: a missing, surplus or misshapen
tensor, a weight file that does not belong to its config, or a newer format is refused with a
message. No pickle. In memory weights are float32; on disk, released ones are in half precision.
"""

import copy
import dataclasses
import datetime
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import patchifier
from patchifier import model_folder
from patchifier.config import Config, RequestError, to_dict
from patchifier.embed import Embedder
from patchifier.extras import need
from patchifier.graph import WEIGHTS
from patchifier.io import replaced_file, replaced_folder
from patchifier.model_folder import FORMAT, GRAPH, RECONSTRUCT, digest_of
from patchifier.nn import graphs, pooling
from patchifier.nn.encode import TorchNetwork
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a model folder holds.

    Attributes
    ----------
    model : Patchifier
        In evaluation mode.
    config : Config
        What it was made with.
    head : Head or None
        Of a fine-tuned model.
    task : Task or None
        What the head answers.
    facts : dict
        How the model was made: plain values, as the card states them.

    Examples
    --------
    >>> loaded = load("patchifier-paper")
    >>> loaded.config.model.n_layers, loaded.head is None, loaded.model.parameter_count()
    (8, True, 8291793)
    """

    model: Patchifier
    config: Config
    head: Head | None = None
    task: Task | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def save(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    auto_map: Mapping[str, str] | None = None,
) -> None:
    """Write a model folder, whole or not at all; one that is there already is replaced.

    Parameters
    ----------
    folder : str or Path
        Where to.
    checkpoint : Checkpoint
        What to write; it is not changed. Statistics of an embedding put together otherwise than its
        config says are left out.
    dtype : torch.dtype
        Of matrices and kernels on disk: torch.float16 halves the file. Biases, scales and
        statistics, which are few and may be large, stay in float32.
    auto_map : mapping of str to str
        For transformers: in which file of the folder it finds its classes.

    Raises
    ------
    RequestError
        If `dtype` is another one, or a number is too large for it; nothing is written.

    Examples
    --------
    >>> config = Config()
    >>> save("untrained", Checkpoint(Patchifier(config), config, facts={"steps": 0}))
    >>> load("untrained").facts
    {'steps': 0}
    """
    if dtype not in (torch.float16, torch.float32):
        raise RequestError(f"dtype is {dtype}, expected torch.float16 or torch.float32.")
    model, config = without_other_statistics(checkpoint.model, checkpoint.config)
    checkpoint = dataclasses.replace(checkpoint, model=model, config=config)
    header = {
        "format": FORMAT,
        "version": patchifier.__version__,
        "task": dataclasses.asdict(checkpoint.task) if checkpoint.task else None,
        "facts": dict(checkpoint.facts),
    }
    facts: dict[str, Any] = {"model_type": "patchifier", "checkpoint": header}
    facts |= {"auto_map": dict(auto_map)} if auto_map else {}
    text = json.dumps({**facts, **to_dict(checkpoint.config)}, indent=1) + "\n"
    tensors = {
        name: _stored(name, tensor, dtype).contiguous()
        for name, tensor in _state(checkpoint.model, checkpoint.head).items()
    }
    with replaced_folder(Path(folder)) as new:
        metadata = {"config": digest_of(text)}  # one key: safetensors writes several in any order
        write_tensors(new / WEIGHTS, tensors, metadata=metadata)
        for name, content in graphs_of(checkpoint.config, checkpoint.task).items():
            (new / name).write_bytes(content)
        (new / "config.json").write_text(text, encoding="utf-8", newline="\n")
        (new / "README.md").write_text(card(checkpoint), encoding="utf-8", newline="\n")


def graphs_of(config: Config, task: Task | None) -> dict[str, bytes]:
    """Graphs of a model by the names of their files; none where onnx is not installed."""
    found = dict[str, bytes]()
    if importlib.util.find_spec("onnx") is None:
        logger.warning("written without %s, as onnx is not installed.", GRAPH)
        return found
    if graphs.has_window_graph(config):
        found[GRAPH] = graphs.window_graph(config, task)
    if graphs.has_reconstruct_graph(config):
        found[RECONSTRUCT] = graphs.reconstruct_graph(config)
    return found


def add_graphs(folder: str | Path) -> list[Path]:
    """Write the graphs of a model folder that has none, and return their paths.

    Refused: no model, onnx that is not installed, settings of which there is no graph.
    """
    loaded, path = load(folder), model_folder.read(folder).path
    need("onnx")
    found = graphs_of(loaded.config, loaded.task)
    if GRAPH not in found:
        graphs.window_graph(loaded.config, loaded.task)  # raises the reason
    for name, content in found.items():
        with replaced_file(path / name) as new:
            new.write_bytes(content)
    return [path / name for name in found]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Unlike safetensors' own function, one that fails for want of room raises an OSError.
    """
    path.write_bytes(safetensors.torch.save(dict(tensors), metadata=dict(metadata)))


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
    if not torch.equal(stored.isfinite(), tensor.isfinite()):
        raise RequestError(
            f"tensor {name} holds {tensor.abs().max():.3g}, more than {stored.dtype} can: save "
            "the model in torch.float32."
        )
    return stored


def load(model: str | Path | None = None) -> Checkpoint:
    """Read a model folder; `model` names it as for :func:`patchifier.weights.find`.

    Raises
    ------
    RequestError
        If anything is missing, surplus, damaged, or made by a newer version; the message names it.
        As :func:`patchifier.weights.find` does.

    Examples
    --------
    >>> loaded = load("patchifier-paper")
    >>> loaded.task is None
    True
    """
    folder = model_folder.read(model)
    config, task = folder.config, folder.task
    with torch.device("meta"):  # before memory is taken for what a config asks for
        _require_shapes(folder.path, _state(*_build(config, task)), folder.shapes())
    network, head = _build(config, task)
    wanted = _state(network, head)
    for name, array in folder.tensors().items():
        _copy(torch.from_numpy(array), wanted[name], where=f"{folder.path}: tensor {name}")
    return Checkpoint(network.eval(), config, head.eval() if head else None, task, folder.facts)


def embedder_of(checkpoint: Checkpoint, *, device: str = "cpu") -> Embedder:
    """Embedder of a model in memory, which is changed in place: accelerated, in evaluation mode.

    Examples
    --------
    >>> model = embedder_of(load("patchifier-paper"))
    >>> model.embed("music/one.ogg").shape
    (512,)
    """
    pooling.require_embed(checkpoint.config)
    model, config = without_other_statistics(checkpoint.model, checkpoint.config)
    head, task = checkpoint.head, checkpoint.task
    network = TorchNetwork(model, config, head=head, task=task, device=device)
    return Embedder(network, config, task)


def checkpoint_of(embedder: Embedder, facts: Mapping[str, Any] | None = None) -> Checkpoint:
    """The model in memory of an Embedder; one that runs by ONNX Runtime is refused."""
    network = embedder.network
    if not isinstance(network, TorchNetwork):
        raise RequestError(
            "this Embedder runs without torch: load it by patchifier.checkpoint.load_embedder(...)."
        )
    return Checkpoint(network.model, embedder.config, network.head, embedder.task, facts or {})


def load_embedder(model: str | Path | None = None, *, device: str = "cpu") -> Embedder:
    """Load a model with torch, on any device.

    Examples
    --------
    >>> load_embedder("patchifier-paper").size
    512
    """
    found = find_device(device)
    return embedder_of(load(model), device=found)


def _build(config: Config, task: Task | None) -> tuple[Patchifier, Head | None]:
    network = Patchifier(config)
    with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away
        return network, Head(config.model.embed_dim, len(task.names)) if task else None


def _state(network: Patchifier, head: Head | None) -> dict[str, torch.Tensor]:
    """Tensors of a model and its head by their names on disk."""
    parts: dict[str, nn.Module | None] = {"model": network, "head": head}
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        if module
        for name, tensor in module.state_dict().items()
    }


def _require_shapes(
    folder: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse weights whose names or shapes are not those of their config."""
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        raise RequestError(
            f"{folder}: the weights lack {_listed(missing)} and have {_listed(surplus)} besides. "
            "Copy or save the model again."
        )
    for name, shape in found.items():
        if shape != wanted[name].shape:
            raise RequestError(
                f"{folder}: tensor {name} has shape {shape}, config.json asks for "
                f"{tuple(wanted[name].shape)}."
            )


def _listed(names: Sequence[str]) -> str:
    """Return names, at most ten of them."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{names[:10]}{more}" if names else "nothing"


def _copy(tensor: torch.Tensor, wanted: torch.Tensor, *, where: str) -> None:
    """Copy stored numbers; those of another kind are refused."""
    floats = tensor.is_floating_point() and wanted.is_floating_point()
    if tensor.dtype != wanted.dtype and not floats:
        raise RequestError(
            f"{where} holds {tensor.dtype}, expected {wanted.dtype}. Copy or save the model again."
        )
    wanted.copy_(tensor)


def card(checkpoint: Checkpoint) -> str:
    """Model card, in the form that model hubs expect."""
    unlabelled = checkpoint.config.pretrain.is_self_supervised
    if checkpoint.task:
        kind = f"fine-tuned: {checkpoint.task.kind} of {', '.join(checkpoint.task.names)}"
    elif unlabelled:
        kind = "pre-trained, no labels used"
    else:
        kind = "pre-trained, also on notes of rendered music or on another model's vectors"
    seconds = checkpoint.config.model.patch_frames * checkpoint.config.spectrogram.frame_s
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: patchifier",
        f"tags: [music, audio{', self-supervised' if unlabelled else ''}]",
        "---",
        "",
        "# Patchifier",
        "",
        f"A music encoder ({kind}) with {checkpoint.model.parameter_count():,} parameters, saved "
        f"{datetime.date.today()} by patchifier {patchifier.__version__}.",
        f"It reads mono audio at {checkpoint.config.spectrogram.sample_rate:,} Hz as patches of "
        f"{seconds:.3f} s.",
        "",
        "```python",
        "import patchifier",
        "",
        'model = patchifier.load("this/folder")',
        'vector = model.embed("song.mp3")',
        "```",
        "",
        "The weights are Apache-2.0; the licences of the music they were trained on are listed "
        "where that music comes from.",
        "",
        "| how it was made | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in checkpoint.facts.items()),
    ]
    return "\n".join(lines) + "\n"


def without_other_statistics(model: Patchifier, config: Config) -> tuple[Patchifier, Config]:
    """A model and its config.

    If its statistics are those of numbers put together otherwise, both without, on the same
    weights.
    """
    bare_config = dataclasses.replace(config, embed=config.embed.plain)
    if model.readout is None:
        return model, bare_config
    if model.readout.settings == config.embed.numbers:
        return model, config
    bare = copy.copy(model)
    bare._modules = dict(model._modules)
    bare.readout, bare.config = None, bare_config
    return bare, bare_config


def find_device(name: str) -> str:
    """A device by torch's name for it, which must be there; "auto" is the best that is."""
    if name == "auto":
        return (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(" at start")[0]
        raise RequestError(
            f"device is {name!r}, expected one that torch has here, such as 'cpu', 'cuda', 'mps' "
            f"or 'auto': {reason}"
        ) from error
    return name

"""A trained model as a folder: ``model.safetensors``, ``config.json`` and a card, ``README.md``.

It is written beside and renamed into place. Loading is strict: a missing, surplus or misshapen
tensor, a weight file that does not belong to its config, or a newer format is refused with a
message. No pickle. In memory weights are float32; on disk, released ones are in half precision.
"""

import contextlib
import copy
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

import patchifier
from patchifier import weights
from patchifier.config import Config, RequestError, current_form, naming, to_dict, update
from patchifier.io import parse_json, read_text, replaced_folder, require_file
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

FORMAT = 1


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
        If a number is too large for `dtype`; nothing is written.
    """
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
        metadata = {"config": _digest(text)}  # one key: safetensors writes several in any order
        write_tensors(new / "model.safetensors", tensors, metadata=metadata)
        (new / "config.json").write_text(text, encoding="utf-8", newline="\n")
        (new / "README.md").write_text(card(checkpoint), encoding="utf-8", newline="\n")


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
    folder = weights.find(model)
    text, values, header, task = _read_config(folder)
    with naming(folder / "config.json"):
        config = update(Config(), current_form(values, whole=True))
    with torch.device("meta"):  # before memory is taken for what a config asks for
        _require_shapes(folder, _state(*_build(config, task)), _read_shapes(folder, _digest(text)))
    network, head = _build(config, task)
    wanted = _state(network, head)
    for name, tensor in _read_tensors(folder).items():
        _copy(tensor, wanted[name], where=f"{folder}: tensor {name}")
    return Checkpoint(network.eval(), config, head.eval() if head else None, task, header["facts"])


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
    """Copy stored numbers; those of another kind, NaN and infinity are refused."""
    floats = tensor.is_floating_point() and wanted.is_floating_point()
    if tensor.dtype != wanted.dtype and not floats:
        raise RequestError(
            f"{where} holds {tensor.dtype}, expected {wanted.dtype}. Copy or save the model again."
        )
    wanted.copy_(tensor)
    if not np.isfinite(wanted.numpy()).all():
        raise RequestError(
            f"{where} holds NaN or infinity. Copy the model again, or train it again."
        )


def _read_config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], Task | None]:
    text = ""
    try:
        text = read_text(folder / "config.json")
        values = parse_json(text)
        header = values.pop("checkpoint")
        for name in ("model_type", "auto_map"):  # what transformers goes by
            values.pop(name, None)
        newer, task = header["format"] > FORMAT, None
        if not newer and header["task"]:
            task = Task(**{**header["task"], "names": tuple(header["task"]["names"])})
        header["facts"] = dict(header["facts"]) if not newer else {}
    except OSError as error:
        raise RequestError(
            f"{folder} is not a model folder: cannot read its config.json "
            f"({error.strerror}).{_hint(folder)}"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RequestError(
            f"{folder} is not a model folder: its config.json is not one of a checkpoint."
            f"{_hint(folder, text)}"
        ) from error
    if newer:
        raise RequestError(
            f"{folder} has format {header['format']}, this version reads up to {FORMAT}: pip "
            "install -U patchifier."
        )
    return text, values, header, task


def _hint(folder: Path, config: str = "") -> str:
    """What a folder that is no model probably is; `config` is the text of its config.json."""
    if '"model_type": "patchifier"' in config and '"checkpoint"' not in config:
        return (
            " transformers wrote it (save_pretrained). To make a model folder of it: "
            "from patchifier.integrations import hf; "
            f"hf.PatchifierModel.from_pretrained({str(folder)!r}).save_folder(NEW)."
        )
    if (folder / "cache.json").exists():
        return " It is a cache: where a command takes both, the model comes first."
    models = sorted(
        path.parent
        for pattern in ("model/config.json", "*/model/config.json")
        for path in folder.glob(pattern)
    )
    return f" Did you mean {models[0]}?" if models else ""


def _read_shapes(folder: Path, digest: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, of which nothing but the file's header is read.

    `digest` is that of the config.
    """
    with _weights(folder) as file:
        if (file.metadata() or {}).get("config") != digest:
            raise RequestError(
                f"{folder}: model.safetensors was not saved with this config.json. Copy the whole "
                "folder again."
            )
        names = list(file.keys())  # the file is not a dict
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with _weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@contextlib.contextmanager
def _weights(folder: Path) -> Iterator[Any]:
    """Open the file of weights; what it cannot give is a RequestError."""
    path = folder / "model.safetensors"
    try:
        require_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise RequestError(
            f"{path}: cannot be read as weights ({error}). Copy or save the model again."
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card(checkpoint: Checkpoint) -> str:
    """Model card, in the form that model hubs expect."""
    kind = (
        f"fine-tuned: {checkpoint.task.kind} of {', '.join(checkpoint.task.names)}"
        if checkpoint.task
        else "pre-trained, no labels used"
    )
    seconds = checkpoint.config.model.patch_frames * checkpoint.config.spectrogram.frame_s
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: patchifier",
        "tags: [music, audio, self-supervised]",
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
    """A device by torch's name for it; "auto" is the best that is there.

    Raises
    ------
    RequestError
        If there is no such device.
    """
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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(" at start")[0]
        raise RequestError(
            f"device is {name!r}, expected one that torch has here, such as 'cpu', 'cuda', 'mps' "
            f"or 'auto': {reason}"
        ) from error
    return name


def weights_hash(module: nn.Module) -> str:
    """Hash of every tensor of a network."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()

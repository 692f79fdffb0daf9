"""A model folder: ``config.json``, ``model.safetensors``, ``graph.onnx`` and a card.

:mod:`patchifier.checkpoint` writes one, and loads it with torch. :class:`OnnxNetwork` runs its
graph without torch. What a folder holds is checked before it is used: its format, the names and
shapes of its weights, and that they are finite.
"""

import contextlib
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from patchifier import weights
from patchifier.config import Config, RequestError, current_form, naming, update
from patchifier.graph import WEIGHTS, Session, graph_error
from patchifier.io import parse_json, read_text, require_file
from patchifier.tasks import Task
from patchifier.windows import Batch, Encoded

FORMAT = 1
GRAPH, RECONSTRUCT = "graph.onnx", "reconstruct.onnx"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm
Arrays = dict[str, np.ndarray]  # weights by name


@dataclass(frozen=True)
class ModelFolder:
    """A model folder.

    Attributes
    ----------
    path : Path
    config : Config
        What the model was made with.
    task : Task or None
        Of a fine-tuned model.
    facts : dict
        How the model was made.
    digest : str
        Hash of config.json, which the weights name.
    """

    path: Path
    config: Config
    task: Task | None
    facts: Mapping[str, Any]
    digest: str

    @property
    def has_graph(self) -> bool:
        """Whether the folder can be used without torch."""
        return (self.path / GRAPH).is_file()

    @property
    def has_reconstruct_graph(self) -> bool:
        """Whether masked patches can be predicted without torch."""
        return (self.path / RECONSTRUCT).is_file()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, of which nothing but the file's header is read."""
        with _weights(self.path) as file:
            if (file.metadata() or {}).get("config") != self.digest:
                raise RequestError(
                    f"{self.path}: {WEIGHTS} was not saved with this config.json. Copy the whole "
                    "folder again."
                )
            names = list(file.keys())  # the file is not a dict
            if surplus := [name for name in names if not name.startswith(("model.", "head."))]:
                raise RequestError(
                    f"{self.path}: the weights have {surplus[:10]} besides. Copy or save the "
                    "model again."
                )
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part of the model, such as "extractor"."""
        counts = Counter[str]()
        for name, shape in self.shapes().items():
            kind, part, *_ = name.split(".")
            if kind == "model" and part != "readout" and not name.endswith(BUFFERS):
                counts[part] += math.prod(shape)
        return dict(counts)

    def tensors(self) -> Arrays:
        """Tensors by name, floats as float32; NaN and infinity are refused."""
        self.shapes()
        with _weights(self.path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return {name: _finite(self.path, name, array) for name, array in found.items()}


def read(model: str | Path | None = None) -> ModelFolder:
    """Read the config of a model folder; `model` names it as for :func:`patchifier.weights.find`.

    Raises
    ------
    RequestError
        If there is no such model, or its config.json is not one of a model of this version.

    Examples
    --------
    >>> read("patchifier-paper").has_graph
    True
    """
    path = weights.find(model)
    text, values, header, task = read_config(path)
    with naming(path / "config.json"):
        config = update(Config(), current_form(values, whole=True))
    return ModelFolder(path, config, task, header["facts"], digest_of(text))


def digest_of(text: str) -> str:
    """Hash of the text of config.json."""
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise RequestError(
            f"{path}: tensor {name} holds NaN or infinity. Copy the model again, or train it again."
        )
    return array


def read_config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], Task | None]:
    """Text of config.json, values of the config, the folder's own facts, and the task."""
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
        if not folder.exists():
            raise RequestError(
                f"{folder} is not a model folder: there is no such folder."
            ) from error
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
    if not models and config and (folder / "run.json").is_file():
        return " It is a run without a model yet."
    return f" Did you mean {models[0]}?" if models else ""


@contextlib.contextmanager
def _weights(folder: Path) -> Iterator[Any]:
    """Open the file of weights; what it cannot give is a RequestError."""
    path = folder / WEIGHTS
    try:
        require_file(path)
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise RequestError(
            f"{path}: cannot be read as weights ({error}). Copy or save the model again."
        ) from error


# --- the network of a folder, without torch ---


class OnnxNetwork:
    """The network of a model folder, by ONNX Runtime.

    Parameters
    ----------
    folder : ModelFolder
        One with a graph.
    device : str
        "cpu", or one that :func:`patchifier.devices.serves` knows.

    Raises
    ------
    DeviceError
        If ONNX Runtime cannot use the device.
    """

    def __init__(self, folder: ModelFolder, *, device: str = "cpu") -> None:
        self._folder, self.device, tensors = folder, device, folder.tensors()
        self._parameter_count = sum(folder.parameters().values())
        self._model = {
            name.removeprefix("model."): array
            for name, array in tensors.items()
            if name.startswith("model.")
        }
        self._encode = Session(folder.path / GRAPH, tensors, device=device)
        if device != "cpu":
            self._encode.session()  # now, not at the first music
        drawing = folder.path / RECONSTRUCT
        draws = folder.has_reconstruct_graph
        self._reconstruct = Session(drawing, tensors, device=device) if draws else None

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return self._parameter_count

    @functools.cached_property
    def weights_hash(self) -> str:
        """Hash of every tensor of the model."""
        return weights_hash(self._model)

    def encode(self, batch: Batch) -> Encoded:
        """Vectors of windows."""
        inputs = {"index": batch.index, "n_new_frames": batch.n_new_frames}
        found = self._encode(patches=batch.patches, **inputs)
        _require_shapes(self._encode.path, found, self._shapes_of(batch))
        return Encoded(*found)

    def _shapes_of(self, batch: Batch) -> list[tuple[int, ...]]:
        """Shapes of what config.json says a batch gives."""
        config, task = self._folder.config, self._folder.task
        B, N = batch.index.shape
        patch_size = config.model.embed_dim * len(config.embed.layers)
        shapes = [(B, config.embedding_size), (B, N, patch_size)]
        return [*shapes, (B, len(task.names))] if task else shapes

    def reconstruct(self, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mel bands (N, n_mels, W) of patches (N, 1, M, W); `mask` (N,) is True where masked."""
        if self._reconstruct is None:
            raise RequestError(self._no_drawing())
        found = self._reconstruct(patches=patches, mask=mask)
        n_mels, width = self._folder.config.spectrogram.n_mels, patches.shape[-1]
        _require_shapes(self._reconstruct.path, found, [(len(patches), 1, n_mels, width)])
        return found[0][:, 0]

    def _no_drawing(self) -> str:
        """Why there is no graph of the reconstruction, and what to do."""
        path = self._folder.path
        reason = f": it has no {RECONSTRUCT}, which 'patchifier export {path} --graphs' writes"
        if self._folder.config.model.n_predictor_layers:
            reason = (
                f", since a model with a predictor, such as patchifier-base, has no {RECONSTRUCT}"
            )
        return (
            f"{path} draws by torch alone{reason}. Install torch (pip install 'patchifier[train]') "
            "and, in Python, load it by patchifier.checkpoint.load_embedder(...); or take "
            f"{weights.PAPER}, or a model of the recipes demo, base-paper or paper."
        )


def _require_shapes(
    path: Path, found: Sequence[np.ndarray], wanted: Sequence[tuple[int, ...]]
) -> None:
    """Refuse arrays that a graph should not give by its config.json."""
    shapes = [each.shape for each in found]
    if shapes != list(wanted) or any(each.dtype != np.float32 for each in found):
        raise graph_error(path, f"it gives arrays of {shapes}, expected floats of {list(wanted)}")


def weights_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash of the tensors of a network by name; floats are float32."""
    found = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        found.update(f"{name} {array.shape} torch.{array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

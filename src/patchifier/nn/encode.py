"""A model of torch as the network of an Embedder (:mod:`patchifier.embed`), on any device."""

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier.config import Config
from patchifier.model_folder import Arrays, weights_hash
from patchifier.nn.fast import accelerate
from patchifier.nn.graphs import WindowGraph
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from patchifier.windows import Batch, Encoded


class TorchNetwork:
    """A model in evaluation mode, on a device, that encodes batches of windows.

    The model is changed in place: accelerated and put into evaluation mode. ``config.embed`` says
    how a sequence becomes a vector; head and task are of a fine-tuned model.
    """

    def __init__(
        self,
        model: Patchifier,
        config: Config,
        *,
        head: Head | None = None,
        task: Task | None = None,
        device: str = "cpu",
    ) -> None:
        self.model, self.config, self.head, self.task = model, config, head, task
        self.device = torch.device(device)
        accelerate(model.to(self.device).eval())
        if head is not None:
            head.to(self.device).eval()
        self.graph = WindowGraph(model, config, head, task)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain arrays: processes share no memory, and each finds the device anew."""
        head = None if self.head is None else arrays_of(self.head)
        parts = self.config, arrays_of(self.model), head, self.task, str(self.device)
        return _rebuilt, parts

    def cpu(self) -> "TorchNetwork":
        """A copy on the CPU."""
        model, head = copy.deepcopy((self.model, self.head))
        return TorchNetwork(model, self.config, head=head, task=self.task)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return self.model.parameter_count()

    @functools.cached_property
    def weights_hash(self) -> str:
        """Hash of every tensor of the model."""
        return model_hash(self.model)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> Encoded:
        """Vectors of windows."""
        dtype = next(self.model.parameters()).dtype
        patches = torch.from_numpy(batch.patches).to(self.device, dtype)
        places = (
            torch.from_numpy(each).to(self.device) for each in (batch.index, batch.n_new_frames)
        )
        return Encoded(*(each.float().cpu().numpy() for each in self.graph(patches, *places)))

    @torch.inference_mode()
    def reconstruct(self, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mel bands (N, n_mels, W) of patches (N, 1, M, W); `mask` (N,) is True where masked."""
        batch = torch.from_numpy(patches)[None].to(next(self.model.parameters()))
        masked = torch.from_numpy(mask)[None].to(self.device)
        found: Tensor = self.model.reconstruct(batch, mask=masked)
        return found[0, :, 0].float().cpu().numpy()


def arrays_of(part: nn.Module) -> Arrays:
    """Tensors of a module as arrays, by their names in the state dict."""
    return {name: value.cpu().numpy() for name, value in part.state_dict().items()}


def model_hash(model: nn.Module) -> str:
    """Hash of every tensor of a model."""
    return weights_hash(arrays_of(model))


def _rebuilt(
    config: Config, weights: Arrays, head_weights: Arrays | None, task: Task | None, device: str
) -> TorchNetwork:
    def with_weights(part: nn.Module, arrays: Arrays) -> Any:
        part.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return part

    model, head = with_weights(Patchifier(config), weights), None
    if head_weights is not None and task is not None:
        head = with_weights(Head(config.model.embed_dim, len(task.names)), head_weights)
    return TorchNetwork(model, config, head=head, task=task, device=device)

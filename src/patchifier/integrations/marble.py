"""An encoder for MARBLE's configuration files; MARBLE itself is not needed here.

Name it by its import path::

    encoder:
      class_path: patchifier.integrations.marble.PatchifierEncoder
      init_args: {train_mode: freeze}

Shapes: B clips, S samples, N patches, D width, L bottleneck layers.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from patchifier import checkpoint
from patchifier.config import Config, RequestError
from patchifier.integrations.waveforms import encode_waveforms

PAPER = Config()
TRAIN_MODES = ("freeze", "full")


@dataclass(frozen=True)
class EncoderOutput:
    """L + 1 hidden states (B, N, D) for MARBLE's selection of layers, and which are valid (B, N).

    L + 1 hidden states (B, N, D), the last, valid (B, N).
    """

    hidden_states: tuple[Tensor, ...]
    valid: Tensor

    @property
    def last_hidden_state(self) -> Tensor:
        """The last layer."""
        return self.hidden_states[-1]


class PatchifierEncoder(nn.Module):
    """A model as MARBLE's tasks hold it.

    Parameters
    ----------
    model_folder : str
        What :func:`patchifier.load` takes; the bundled model by default.
    train_mode : "freeze" or "full"
        Weights that stay as they are, in evaluation mode whatever the trainer sets; or the
        extractor and the bottleneck in training.

    Attributes
    ----------
    NAME, SAMPLING_RATE, TOKEN_RATE, NUM_FEATURES, N_TRANSFORMER_LAYERS
        Name, rate in Hz, patches in a second, width D and layers L. On the class they are those of
        the paper's setting, on an instance its own.
    dtype : torch.dtype
        Of the weights.

    Raises
    ------
    RequestError
        If there is no such model or train mode.

    Notes
    -----
    MARBLE averages over time without a mask. So that a mean over N patches is the mean over a
    clip's own, those beyond the end of a clip that is shorter than its batch repeat the clip's
    mean.

    Examples
    --------
    >>> encoder = PatchifierEncoder("patchifier-paper")
    >>> output = encoder(torch.zeros(2, 44_100))
    >>> len(output.hidden_states), output.last_hidden_state.shape
    (9, torch.Size([2, 3, 256]))
    """

    NAME = "Patchifier"
    SAMPLING_RATE = PAPER.spectrogram.sample_rate
    TOKEN_RATE = 1 / (PAPER.model.patch_frames * PAPER.spectrogram.frame_s)
    NUM_FEATURES = PAPER.model.embed_dim
    N_TRANSFORMER_LAYERS = PAPER.model.n_layers

    def __init__(self, model_folder: str | None = None, train_mode: str = "freeze") -> None:
        super().__init__()
        if train_mode not in TRAIN_MODES:
            raise RequestError(
                f"train_mode is {train_mode!r}, expected {' or '.join(TRAIN_MODES)}."
            )
        loaded = checkpoint.load(model_folder)
        self.model, self.config, self.train_mode = loaded.model, loaded.config, train_mode
        self.SAMPLING_RATE = self.config.spectrogram.sample_rate
        self.TOKEN_RATE = 1 / (self.config.model.patch_frames * self.config.spectrogram.frame_s)
        self.NUM_FEATURES, self.N_TRANSFORMER_LAYERS = (
            self.config.model.embed_dim,
            self.config.model.n_layers,
        )
        # What has no part in the outputs, such as decoder and mask token, stays frozen: a trainer
        # on several devices would miss its gradients.
        self.model.requires_grad_(False)
        if train_mode == "full":
            self.model.extractor.requires_grad_(True)
            for name, parameter in self.model.bottleneck.named_parameters():
                parameter.requires_grad_(name != "mask_token")
        self.train(train_mode == "full")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    def train(self, mode: bool = True) -> Self:
        """Set training mode.

        Frozen weights stay in evaluation mode, or dropout and batch statistics would move their
        outputs.
        """
        return super().train(mode and self.train_mode == "full")

    def forward(self, input_tensor: Tensor, input_len: Any = None) -> EncoderOutput:
        """Encode waveforms (B, S) or (B, 1, S), of `input_len` samples each, into every layer.

        Parameters
        ----------
        input_tensor : Tensor, shape (B, S) or (B, 1, S), float
            Samples in [-1, 1] at ``SAMPLING_RATE``, of any precision.
        input_len : sequence of int or Tensor, shape (B,)
            Samples of each clip; what lies beyond has no part in the result.

        Returns
        -------
        EncoderOutput

        Raises
        ------
        RequestError
            For other shapes, integers, or lengths that are not in 1 to S.
        """
        waveforms = _waveforms(input_tensor, input_len)
        with torch.set_grad_enabled(self.train_mode == "full" and torch.is_grad_enabled()):
            layers, _, valid = encode_waveforms(self.model, self.config, waveforms)
            states = tuple(
                torch.where(valid[..., None], layer, _means(layer, valid)) for layer in layers
            )
        return EncoderOutput(states, valid)


def _waveforms(batch: Tensor, lengths: Any) -> list[Tensor]:
    if batch.ndim == 3 and batch.shape[1] == 1:
        batch = batch[:, 0]
    if batch.ndim != 2 or 0 in batch.shape or not batch.is_floating_point():
        raise RequestError(
            f"input_tensor is {tuple(batch.shape)} of {batch.dtype}, expected floats (B, S) or "
            "(B, 1, S): mix to mono first."
        )
    counts = (
        [batch.shape[1]] * len(batch) if lengths is None else [int(length) for length in lengths]
    )
    if len(counts) != len(batch) or not all(1 <= count <= batch.shape[1] for count in counts):
        raise RequestError(
            f"input_len is {counts}, expected {len(batch)} numbers of samples from 1 to "
            f"{batch.shape[1]}."
        )
    return [row[:count] for row, count in zip(batch, counts, strict=True)]


def _means(layer: Tensor, valid: Tensor) -> Tensor:
    """Mean over a clip's own patches: (B, 1, D); the layer (B, N, D) is 0 elsewhere."""
    return layer.sum(1, keepdim=True) / valid.sum(1)[:, None, None].to(layer.dtype)

"""Attention weights of the bottleneck: from which patches each patch takes its context."""

import numpy as np
import torch

from patchifier import windows
from patchifier.nn.model import Patchifier
from patchifier.nn.transformer import TransformerLayer


@torch.inference_mode()
def attention(model: Patchifier, log_mel: np.ndarray) -> np.ndarray:
    """Attention weights of every layer and head on one sequence.

    Parameters
    ----------
    model : Patchifier
        As :func:`patchifier.checkpoint.load` gives it, in evaluation mode.
    log_mel : ndarray, shape (M, T)
        Its first N patches are used, at most those of a window.

    Returns
    -------
    ndarray, shape (layers, heads, 1 + N, 1 + N), float32
        How much each place (third axis) takes from each (last axis), a sum of 1. Place 0 is CLS.

    Raises
    ------
    RequestError
        If the log-mel does not have the model's bands.

    Examples
    --------
    >>> import numpy as np
    >>> from patchifier import checkpoint
    >>> model = checkpoint.load("patchifier-paper").model
    >>> weights = attention(model, np.zeros((64, 4 * 32), np.float32))
    >>> weights.shape[-2:], bool(np.allclose(weights.sum(-1), 1))
    ((5, 5), True)
    """
    bands = windows.require_log_mel(log_mel, model.config)
    patches = torch.from_numpy(windows.cut_windows(bands, model.config)[0].astype(np.float32))
    bottleneck = model.bottleneck
    x = bottleneck.embed(model.extract(patches[None]))  # (1, 1 + N, D)
    found = []
    for layer in bottleneck.encoder.layers:
        assert isinstance(layer, TransformerLayer)
        found.append(layer.attention_weights(x)[0])  # (H, 1 + N, 1 + N)
        x = layer(x)
    return torch.stack(found).numpy()

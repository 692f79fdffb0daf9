"""Embeddings of windows: layers pooled over time, then summaries, whitened.

Shapes: B windows, N patches, D embed_dim, E length of an embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from patchifier.config import Config, EmbedConfig, RequestError
from patchifier.nn.descriptors import DESCRIPTORS, require_descriptor
from patchifier.nn.equivariant import ESTIMATES, require_estimators, summarise
from patchifier.nn.model import Patchifier
from patchifier.nn.shared_patches import Patches


def require_embed(config: Config) -> None:
    """Check that the model has the layers and can compute the summaries of ``config.embed``."""
    deepest, embed = config.model.n_layers, config.embed
    for layer in embed.layers:
        if not -1 - deepest <= layer <= deepest:
            raise RequestError(
                f"embed.layers holds {layer}, expected 0 to {deepest}, or -1 for the last."
            )
    if embed.pooling == "cls" and any(layer in (0, -1 - deepest) for layer in embed.layers):
        raise RequestError(
            "embed.pooling 'cls' needs layers of the bottleneck: layer 0, the extractor, has no "
            "CLS."
        )
    if len(set(embed.summaries)) < len(embed.summaries):
        raise RequestError(f"embed.summaries is {list(embed.summaries)}, expected each once.")
    for name in config.summary_sizes:
        if name in DESCRIPTORS:
            require_descriptor(name, config, what="the summary")
    estimates = [name for name in embed.summaries if name in ESTIMATES]
    require_estimators(estimates, config, field="embed.summaries")


def require_whitening(config: Config) -> None:
    """Check the numbers of components of ``config.embed`` against what they are made from."""
    kept, pooled = config.embed.n_components, config.pooled_size
    if kept > pooled:
        raise RequestError(
            f"embed.n_components is {kept}, but layers are pooled to {pooled} numbers: expected "
            "no more."
        )
    kept, size = config.embed.n_similarity, config.model.embed_dim
    if kept and (config.embed.layers != (-1,) or config.embed.pooling == "cls"):
        raise RequestError(
            f"embed.n_similarity is {kept}, which needs embed.layers [-1] and an embed.pooling "
            "with the mean."
        )
    if kept > size:
        raise RequestError(
            f"embed.n_similarity is {kept}, but model.embed_dim is {size}: expected no more."
        )


def window_embeddings(
    model: Patchifier,
    config: Config,
    layers: Sequence[Tensor],
    n_new_frames: Tensor,
    patches: Patches | None,
) -> Tensor:
    """Embeddings (B, E) of windows: pooled layers, then summaries, whitened if the model is so.

    `layers` are those of :func:`pool_layers`; summaries need `patches` (B, N, M, T). `n_new_frames`
    (B, N) is the number of last frames that no earlier patch holds; 0 or False is padding.
    """
    vectors = pool_layers(layers, n_new_frames > 0, config.embed)
    names, whitening = config.embed.summaries, model.readout
    if names:
        assert patches is not None
        summaries = summarise(names, model.estimators, patches, n_new_frames, config)
        vectors = torch.cat([vectors, *(each.to(vectors.dtype) for each in summaries)], dim=-1)
    if whitening is None or len(whitening.mean) != vectors.shape[-1]:
        return vectors
    return whitening(vectors)


def pool_layers(layers: Sequence[Tensor], valid: Tensor, config: EmbedConfig) -> Tensor:
    """Pool the sequences of ``config.layers`` over time and concatenate them: (B, E).

    `layers` are the extractor's vectors (B, N, D), then (B, 1 + N, D) of each bottleneck layer.
    `valid` (B, N) is False for padding.
    """
    pooled = [pool(layers[layer], valid, config.pooling) for layer in config.layers]
    return torch.cat(pooled, dim=-1)


def pool(sequence: Tensor, valid: Tensor, pooling: str) -> Tensor:
    """Pool a sequence (B, N, D), or (B, 1 + N, D) with CLS, over time.

    Examples
    --------
    >>> sequence, valid = torch.rand(2, 26, 256), torch.ones(2, 25, dtype=torch.bool)
    >>> pool(sequence, valid, "mean+std").shape
    torch.Size([2, 512])
    """
    if pooling == "cls":
        return sequence[:, 0]
    patches = sequence[:, -valid.shape[1] :]  # (B, N, D), without CLS
    weights = valid[..., None].to(patches.dtype)  # (B, N, 1)
    count = weights.sum(1)  # (B, 1)
    mean = (patches * weights).sum(1) / count  # (B, D)
    if pooling == "mean":
        return mean
    if pooling == "mean+max":
        largest = patches.masked_fill(~valid[..., None], -torch.inf).amax(1)
        return torch.cat([mean, largest], dim=-1)
    variance = ((patches - mean[:, None]).square() * weights).sum(1) / count
    return torch.cat([mean, variance.sqrt()], dim=-1)

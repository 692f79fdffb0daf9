"""From the layers of a window to its embedding: pooled over time, summaries behind, standardised.

Shapes: B windows, N patches, D width of a vector, E length of an embedding.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from patchifier.config import Config, EmbedConfig, RequestError
from patchifier.nn.descriptors import DESCRIPTORS, VERSION, require_descriptor
from patchifier.nn.equivariant import ESTIMATES, require_estimators, summarise, summary_size
from patchifier.nn.model import Patchifier


def require_embed(config: Config) -> None:
    """Refuse layers that there are not, and summaries that are no descriptor of a clip and no estimate, or that need what the model has not.

    Raises
    ------
    RequestError
        Naming the layer or the summary.
    """
    deepest, asked = config.model.layers, config.embed
    for layer in asked.layers:
        if not -1 - deepest <= layer <= deepest:
            raise RequestError(
                f"embed.layers holds {layer}, expected 0 to {deepest}, or -1 for the last."
            )
    if asked.pooling == "cls" and any(layer in (0, -1 - deepest) for layer in asked.layers):
        raise RequestError(
            "embed.pooling 'cls' needs layers of the bottleneck: layer 0, the extractor, has no CLS."
        )
    rows = [*(name for name, row in DESCRIPTORS.items() if row.of == "clip"), *ESTIMATES]
    if len(set(asked.summaries)) < len(asked.summaries):
        raise RequestError(f"embed.summaries is {list(asked.summaries)}, expected each once.")
    for name in asked.summaries:
        if name not in rows:
            raise RequestError(
                f"embed.summaries holds {name!r}, expected some of {', '.join(rows)}."
            )
        if name in DESCRIPTORS:
            require_descriptor(name, config, what="the summary")
    require_estimators(
        [name for name in config.embed.summaries if name in ESTIMATES],
        config,
        field="embed.summaries",
    )


def summaries_version(config: Config) -> list[int]:
    """What belongs to the identity of embeddings that hold summaries, beside their settings."""
    return [VERSION] if config.embed.summaries else []


def pooled_size(config: Config) -> int:
    """How many numbers layers are pooled to."""
    return config.model.width * len(config.embed.layers) * (2 if "+" in config.embed.pooling else 1)


def raw_size(config: Config) -> int:
    """How many numbers pooled layers and summaries are together."""
    return pooled_size(config) + sum(summary_size(name, config) for name in config.embed.summaries)


def embedding_size(config: Config) -> int:
    """Length E of an embedding."""
    size = raw_size(config)
    pooled, kept = config.model.components
    return size - pooled + kept if config.model.readout == size else size


def parts_of(config: Config) -> dict[str, slice]:
    """Where in an embedding what stands: "layers" first, then each summary by its name."""
    sizes = {name: summary_size(name, config) for name in config.embed.summaries}
    sizes = {"layers": embedding_size(config) - sum(sizes.values())} | sizes
    ends = itertools.accumulate(sizes.values())
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def read_out(
    model: Patchifier,
    config: Config,
    layers: Sequence[Tensor],
    there: Tensor,
    patches: Tensor | None,
) -> Tensor:
    """Embeddings of windows.

    Parameters
    ----------
    model : Patchifier
        Knows how numbers are standardised, if they are and if there are as many as it measured.
    config : Config
    layers
        As for :func:`pool`.
    there : Tensor, shape (B, N), bool or int
        Where there is a patch, or how many frames at its end no patch before it holds.
    patches : Tensor, shape (B, N, M, W)
        Needed where summaries are asked.

    Returns
    -------
    Tensor, shape (B, E)
        Pooled layers, and behind them summaries.
    """
    parts = [pool(layers, there > 0, config.embed)]
    if config.embed.summaries:
        assert patches is not None
        parts += [
            values.to(parts[0].dtype)
            for values in summarise(
                config.embed.summaries, model.estimators, patches, there, config
            )
        ]
    vector = torch.cat(parts, dim=-1) if config.embed.summaries else parts[0]
    return (
        model.readout(vector)
        if model.readout is not None and len(model.readout.mean) == vector.shape[-1]
        else vector
    )


def require_readout(config: Config) -> None:
    """Refuse a ``model.readout`` that is not the length of pooled layers and summaries, and components of anything but the layers."""
    if config.model.readout not in (0, size := raw_size(config)):
        raise RequestError(
            f"model.readout is {config.model.readout}, but layers and summaries are {size} numbers: set it to {size}, or to 0."
        )
    if config.model.components[0] not in (0, pooled := pooled_size(config)):
        raise RequestError(
            f"model.components is {list(config.model.components)}, but layers are pooled to {pooled} numbers: expected those first."
        )


def pool(layers: Sequence[Tensor], present: Tensor, config: EmbedConfig) -> Tensor:
    """Pool sequences over time.

    Parameters
    ----------
    layers : sequence of Tensor
        The extractor's vectors (B, N, D), then (B, 1 + N, D) of each bottleneck layer.
    present : Tensor, shape (B, N), bool
        Where there is a patch.
    config : EmbedConfig
        Which layers, and how.

    Returns
    -------
    Tensor, shape (B, E)
    """
    return torch.cat(
        [pool_one(layers[layer], present, config.pooling) for layer in config.layers], dim=-1
    )


def pool_one(sequence: Tensor, valid: Tensor, pooling: str) -> Tensor:
    """Pool one layer's sequence, (B, N, D) or with CLS (B, 1 + N, D)."""
    if pooling == "cls":
        return sequence[:, 0]
    patches = sequence[:, -valid.shape[1] :]  # (B, N, D), without CLS
    weights = valid[..., None].to(patches.dtype)  # (B, N, 1)
    count = weights.sum(1)  # (B, 1)
    mean = (patches * weights).sum(1) / count  # (B, D)
    if pooling == "mean":
        return mean
    if pooling == "mean+max":
        return torch.cat([mean, patches.masked_fill(~valid[..., None], -torch.inf).amax(1)], dim=-1)
    variance = ((patches - mean[:, None]).square() * weights).sum(1) / count
    return torch.cat([mean, variance.sqrt()], dim=-1)

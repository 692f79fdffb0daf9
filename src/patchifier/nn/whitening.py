"""Standardised embeddings: z-scores and principal components, fitted to training clips, limited."""

import torch
from torch import Tensor, nn

from patchifier.config import SIMILARITY_RATIO, Config

LEAST_DEVIATION = 1e-6  # of an element: one that varies less keeps its scale
LEAST_VARIANCE = 1e-3  # of a component, relative to an element: smaller ones are noise
LEAST_PREDICTED = 1e-4  # deviation of what is predicted: smaller ones are rounding


class Whitening(nn.Module):
    """Z-scores of embeddings; the pooled layers, which come first, may become components.

    Before them, there may be components of what a head predicts from their mean: "similarity". They
    are long, so that the cosine of two embeddings is mostly that of these components.

    Parameters
    ----------
    config : Config
        Decides the length of an embedding, of its pooled layers, and the numbers of components.

    Attributes
    ----------
    settings : tuple
        ``config.embed.numbers`` of the embeddings that it is for.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    similarity: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.settings = config.embed.numbers
        self.pooled, self.embed_dim = config.pooled_size, config.model.embed_dim
        self.register_buffer("mean", torch.zeros(config.raw_size))
        self.register_buffer("scale", torch.ones(config.raw_size))
        self.others = config.embedding_size - config.embed.n_similarity
        sizes = {"directions": config.embed.n_components, "similarity": config.embed.n_similarity}
        self.projected = [name for name, size in sizes.items() if size]
        for name in self.projected:
            directions = torch.zeros(self.pooled, sizes[name])
            directions.diagonal().fill_(1)  # not torch.eye: without memory it takes seconds
            self.register_buffer(name, directions)

    def fit(self, examples: Tensor, head: Tensor | None = None) -> None:
        """Set mean, deviation and components to those of examples (n, E).

        `head` (K, D) are weights of what is predicted from the mean of the last layer; None
        for the mean itself.
        """
        deviation = examples.std(0, correction=0)
        self.mean.copy_(examples.mean(0))
        self.scale.copy_(torch.where(deviation > LEAST_DEVIATION, deviation, 1.0))
        scores = ((examples - self.mean) / self.scale)[:, : self.pooled].double()
        if "directions" in self.projected:
            variances, vectors = principal_components(scores, self.directions.shape[1])
            self.directions.copy_(signed(vectors / (variances + LEAST_VARIANCE).sqrt()))
        if "similarity" in self.projected:
            D, scale = self.embed_dim, self.scale[: self.embed_dim].double()
            weights = torch.eye(D).to(scale) if head is None else head.to(scale)
            n = self.similarity.shape[1]
            found = predicted_directions(scores[:, :D], weights * scale, n)
            self.similarity.zero_()[:D] = found * (SIMILARITY_RATIO * self.others / n) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Whiten embeddings (..., E)."""
        scores = (x - self.mean) / self.scale
        if self.projected:
            pooled, rest = scores[..., : self.pooled], scores[..., self.pooled :]
            layers = pooled @ self.directions if "directions" in self.projected else pooled
            similar = [pooled @ self.similarity] if "similarity" in self.projected else []
            scores = torch.cat([*similar, layers, rest], dim=-1)
        return scores


def predicted_directions(scores: Tensor, weights: Tensor, count: int) -> Tensor:
    """Directions (D, count) to principal components of what weights (K, D) predict from scores.

    Each is divided by the root of its deviation, so that large ones count more, but not by as
    much. The mean of their variances is 1. Where nothing varies, they keep their scale.
    """
    variances, vectors = principal_components(scores @ weights.T, count)
    if variances[0] < LEAST_PREDICTED**2:
        variances = torch.ones_like(variances)
    deviations = variances.clamp(min=LEAST_VARIANCE * variances[0]).sqrt()
    return signed(weights.T @ (vectors / (deviations * deviations.mean()).sqrt()))


def principal_components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest variances (count,), falling, and their vectors (D, count), of centred rows (n, D)."""
    variances, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))  # rising
    return variances.flip(0)[:count], vectors.flip(1)[:, :count]


def signed(directions: Tensor) -> Tensor:
    """Directions (D, count) whose largest weight is positive: eigenvectors have no sign."""
    largest = directions.abs().argmax(0, keepdim=True)
    return directions * directions.gather(0, largest).sign()

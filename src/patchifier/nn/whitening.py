"""Standardised embeddings: z-scores and principal components, fitted to training clips, limited."""

import torch
from torch import Tensor, nn

from patchifier.config import Config

LEAST_DEVIATION = 1e-6  # of an element: one that varies less keeps its scale
LEAST_VARIANCE = (
    1e-3  # of a component, relative to an element: smaller ones are noise, not enlarged
)


class Whitening(nn.Module):
    """Z-scores of embeddings; the pooled layers, which come first, may become components.

    Parameters
    ----------
    config : Config
        Decides the length of an embedding, of its pooled layers, and the number of components.

    Attributes
    ----------
    settings : tuple
        ``config.embed.numbers`` of the embeddings that it is for.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.settings = config.embed.numbers
        self.max_z_score = config.embed.max_z_score
        n_components = config.embed.n_components
        self.pooled = config.pooled_size if n_components else 0
        self.register_buffer("mean", torch.zeros(config.raw_size))
        self.register_buffer("scale", torch.ones(config.raw_size))
        if n_components:
            directions = torch.zeros(self.pooled, n_components)
            directions.diagonal().fill_(1)  # not torch.eye: without memory it takes seconds
            self.register_buffer("directions", directions)

    def fit(self, examples: Tensor) -> None:
        """Set mean, deviation and components to those of examples (n, E)."""
        deviation = examples.std(0, correction=0)
        self.mean.copy_(examples.mean(0))
        self.scale.copy_(torch.where(deviation > LEAST_DEVIATION, deviation, 1.0))
        if self.pooled:
            scores = ((examples - self.mean) / self.scale)[:, : self.pooled].double()
            self.directions.copy_(principal_directions(scores, self.directions.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten embeddings (..., E)."""
        scores = (x - self.mean) / self.scale
        if self.pooled:
            pooled, rest = scores[..., : self.pooled], scores[..., self.pooled :]
            scores = torch.cat([pooled @ self.directions, rest], dim=-1)
        return scores.clamp(-self.max_z_score, self.max_z_score) if self.max_z_score else scores


def principal_directions(scores: Tensor, count: int) -> Tensor:
    """Directions (D, count) of the largest variance of z-scores (n, D), over their deviations.

    The largest weight of each is positive, since eigenvectors have no sign of their own.
    """
    variances, vectors = torch.linalg.eigh(scores.T @ scores / len(scores))  # rising
    deviations = (variances.flip(0)[:count] + LEAST_VARIANCE).sqrt()
    directions = vectors.flip(1)[:, :count] / deviations
    largest = directions.abs().argmax(0, keepdim=True)
    return directions * directions.gather(0, largest).sign()

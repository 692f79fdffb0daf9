"""A model with what is only there to train it: heads for several targets, how much each counts, and a teacher.

The model alone is what is kept. With the paper's single target, pixels, none of this is used.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patchifier.config import Config
from patchifier.model import Patchifier, take
from patchifier.pretrain.targets import PIXELS, TARGETS, TAUGHT, require_targets

LEAST_DEVIATION = 1e-4  # of a target's number, in units of log-mel: what varies less says nothing
TEMPERATURE = 0.1  # of the contrast between clips
PROJECTED = 128  # numbers in which clips are told apart


class Learner(nn.Module):
    """Stage II with several targets.

    Each patch target is asked of visible patches, by what the bottleneck knows of them, and of masked ones, by what is filled in; each
    clip target of the mean over visible patches. Targets are standardised; errors are weighted by learnt variances (Kendall et al. 2018).

    Parameters
    ----------
    model : Patchifier
    config : Config
        ``pretrain.targets`` names the rows.
    examples : iterable of Tensor
        Patches (B, N, 1, M, W) of training, from which targets are standardised.
    """

    def __init__(self, model: Patchifier, config: Config, examples: Iterable[Tensor]) -> None:
        super().__init__()
        require_targets(config)
        self.model, self.config = model, config
        self.names = [name for name in config.pretrain.targets if name in TARGETS]
        self.taught = [name for name in config.pretrain.targets if name in TAUGHT]
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for patches in examples:
            for name in self.names:
                found[name].append(TARGETS[name].compute(patches[:, :, 0], config).flatten(0, -2).double())
        D = config.model.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.pretrain.seed)
            self.heads = nn.ModuleDict()
            for name, parts in found.items():
                values = torch.cat(parts)
                self.register_buffer(f"{name}_mean", values.mean(0).float())
                self.register_buffer(f"{name}_scale", values.std(0).clamp(min=LEAST_DEVIATION).float())
                self.heads[name] = nn.Linear(D, values.shape[1])
            if "latent" in self.taught:
                self.heads["latent"] = nn.Linear(D, D)
            if "contrast" in self.taught:
                self.heads["contrast"] = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, PROJECTED))
            self.teacher = Teacher(self) if self.taught else None
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in config.pretrain.targets})

    def stage_two_loss(
        self,
        patches: Tensor,
        target: Tensor,
        present: Tensor | None,
        masked: Tensor,
        *,
        visible: Tensor,
        hidden: Tensor,
    ) -> Tensor:
        """Sum of the targets' errors, each over its variance, and of the logarithms of the variances."""
        if self.teacher and self.training:
            self.teacher.follow(self, self.config.pretrain.teacher_decay)
        errors = self.errors(patches, target, present, masked, visible=visible, hidden=hidden)
        terms = [error * torch.exp(-self.log_variances[name]) + self.log_variances[name] for name, error in errors.items()]
        return torch.stack(terms).mean()

    def errors(self, patches: Tensor, target: Tensor, present: Tensor | None, masked: Tensor, *, visible: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Mean squared error of each target, in units of its variance, but for pixels'."""
        model = self.model
        known, filled = model.fill(patches, masked=masked, present=present, visible=visible)  # (B, N, D)
        seen = ~masked if present is None else present & ~masked
        weights = seen[..., None].to(known.dtype)
        whole = (known * weights).sum(1) / weights.sum(1)  # (B, D)
        errors = {}
        if PIXELS in self.log_variances:
            reconstructed = model.decoder(model.align(take(filled, hidden)))  # (P, 1, M, W)
            variance = take(model.mel(target), hidden).var()
            errors[PIXELS] = nn.functional.mse_loss(reconstructed, take(model.mel(target), hidden)) / variance
        for name in self.names:
            with torch.autocast(patches.device.type, enabled=False):
                wanted = self.standardised(name, target[:, :, 0].float())
            head = self.heads[name]
            if TARGETS[name].of == "clip":
                errors[name] = nn.functional.mse_loss(head(whole), wanted)
            else:
                of_visible = nn.functional.mse_loss(head(take(known, visible)), take(wanted, visible))
                of_hidden = nn.functional.mse_loss(head(take(filled, hidden)), take(wanted, hidden))
                errors[name] = (of_visible + of_hidden) / 2
        if self.teacher:
            vectors, clips = self.teacher(patches, present, masked, hidden)  # (H, D), (B, 128)
            if "latent" in self.taught:
                errors["latent"] = nn.functional.mse_loss(self.heads["latent"](take(filled, hidden)), vectors)
            if "contrast" in self.taught:
                likeness = nn.functional.normalize(self.heads["contrast"](whole).float(), dim=1) @ clips.T / TEMPERATURE  # (B, B)
                own = torch.arange(len(clips), device=clips.device)
                errors["contrast"] = nn.functional.cross_entropy(likeness, own) / math.log(max(2, len(clips)))
        return errors

    @torch.no_grad()
    def standardised(self, name: str, patches: Tensor) -> Tensor:
        """A target of patches (B, N, M, W), in deviations from its mean over training."""
        values = TARGETS[name].compute(patches, self.config)
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_scale")

    def figures(self, batches: Iterable[Any]) -> dict[str, float]:
        """Error of each target on held-out batches; 1 is what its mean would earn."""
        sums: dict[str, float] = {}
        count = 0
        for batch in batches:
            flat = batch.masked.flatten()
            places = {"visible": (batch.present.flatten() & ~flat).nonzero()[:, 0], "hidden": flat.nonzero()[:, 0]}
            for name, error in self.errors(batch.patches, batch.patches, batch.present, batch.masked, **places).items():
                sums[name] = sums.get(name, 0.0) + float(error) * len(batch.patches)
            count += len(batch.patches)
        return {f"{name}_error": value / count for name, value in sums.items()}


class Teacher(nn.Module):
    """A slow copy of what it teaches, which follows it step by step; it sees masked patches alone, so that nothing can be copied (M2D)."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.extractor, self.bottleneck = copy.deepcopy(learner.model.extractor), copy.deepcopy(learner.model.bottleneck)
        self.contrast = copy.deepcopy(learner.heads["contrast"]) if "contrast" in learner.heads else None
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, learner: Learner, decay: float) -> None:
        """Move weights a little towards the learner's; take its statistics as they are."""
        parts = {"extractor": learner.model.extractor, "bottleneck": learner.model.bottleneck}
        if self.contrast:
            parts["contrast"] = learner.heads["contrast"]
        for name, part in parts.items():
            own = getattr(self, name)
            torch._foreach_lerp_(list(own.parameters()), list(part.parameters()), 1 - decay)
            for buffer, source in zip(own.buffers(), part.buffers(), strict=True):
                buffer.copy_(source)

    @torch.no_grad()
    def forward(self, patches: Tensor, present: Tensor | None, masked: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (H, D) of masked patches, the mean of all normalised layers, and of clips (B, 128), of length one."""
        B, N = masked.shape
        seen = self.extractor(take(patches, hidden))  # (H, D)
        vectors = seen.new_zeros(B * N, seen.shape[1]).index_copy(0, hidden, seen).unflatten(0, (B, N))
        count = int(masked.sum(1).max()) if present is not None else len(hidden) // B
        chosen = masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]  # (B, H)
        layers = self.bottleneck(vectors, present=None if present is None else masked, chosen=chosen)
        size = (vectors.shape[-1],)
        mean = torch.stack([nn.functional.layer_norm(layer[:, 1:].float(), size) for layer in layers]).mean(0)  # (B, H, D)
        there = masked.gather(1, chosen)  # (B, H)
        clips = (layers[-1][:, 1:].float() * there[..., None]).sum(1) / there.sum(1, keepdim=True)  # (B, D)
        projected = nn.functional.normalize(self.contrast(clips).float(), dim=1) if self.contrast else clips
        full = torch.zeros(B, N, size[0], device=mean.device).scatter(1, chosen[..., None].expand(-1, -1, size[0]), mean)
        return take(nn.functional.layer_norm(full, size), hidden), projected

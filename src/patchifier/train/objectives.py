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
from patchifier.nn.descriptors import DESCRIPTORS, everything
from patchifier.nn.equivariant import ESTIMATORS, estimator_of
from patchifier.nn.model import Patchifier, places, put, side_by_side, take
from patchifier.train import distributed as devices
from patchifier.train.targets import PIXELS, TAUGHT, require_targets

LEAST_DEVIATION = 1e-4  # of a target's number, in units of log-mel: what varies less says nothing
TEMPERATURE = 0.1  # of the contrast between clips
PROJECTED = 128  # numbers in which clips are told apart
OUT = -1e4  # likeness of what is no answer
EQUAL = (1.0, 1.0)


def idle_parts(config: Config) -> tuple[str, ...]:
    """Parts of the model that its targets do not ask anything of."""
    names = [name for name in config.pretrain.targets if name not in ESTIMATORS]
    if not names:
        return "extractor", "bottleneck", "align", "decoder", "predictor"
    filled_in = any(
        name in (PIXELS, "latent") or (name in DESCRIPTORS and DESCRIPTORS[name].of == "patch")
        for name in names
    )
    return (
        *(() if PIXELS in names else ("align", "decoder")),
        *(() if filled_in else ("predictor",)),
    )


class Learner(nn.Module):
    """Stage II with several targets.

    Each patch target is asked of visible patches, by what the bottleneck knows of them, and of masked ones, by what is filled in; each
    clip target of the mean over visible patches. Targets are standardised; errors are weighted by learnt variances (Kendall et al. 2018).
    Estimators hear whole clips and are asked to agree with themselves.

    Parameters
    ----------
    model : Patchifier
    config : Config
        ``pretrain.targets`` names the rows.
    examples : iterable of (Tensor, Tensor or None)
        Patches (B, N, 1, M, W) of training, this process's share, and where there are any (B, N), if not everywhere: targets are
        standardised by those of all processes.
    elsewhere : Tensor, shape (clips, E)
        What another model says of every clip of the cache, standardised, for the target "distil".
    """

    def __init__(
        self,
        model: Patchifier,
        config: Config,
        examples: Iterable[tuple[Tensor, Tensor | None]],
        elsewhere: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_targets(config)
        self.model, self.config = model, config
        self.names = [name for name in config.pretrain.targets if name in DESCRIPTORS]
        self.estimated = [name for name in config.pretrain.targets if name in ESTIMATORS]
        self.taught = [name for name in config.pretrain.targets if name in TAUGHT]
        found = self._moments(examples)
        self.register_buffer("pixels_variance", found.pop(PIXELS)[1].square(), persistent=False)
        self.register_buffer("elsewhere", elsewhere, persistent=False)
        D = config.model.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.pretrain.seed)
            self.heads = nn.ModuleDict()
            for name, (mean, deviation) in found.items():
                self.register_buffer(f"{name}_mean", mean)
                self.register_buffer(f"{name}_scale", deviation)
                self.heads[name] = nn.Linear(D, len(mean))
            if elsewhere is not None:
                self.heads["distil"] = nn.Linear(D, elsewhere.shape[1])
            if "latent" in self.taught:
                self.heads["latent"] = nn.Linear(D, D)
            if "contrast" in self.taught:
                self.heads["contrast"] = nn.Sequential(
                    nn.Linear(D, D), nn.GELU(), nn.Linear(D, PROJECTED)
                )
            self.teacher = Teacher(self) if self.taught else None
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in config.pretrain.targets}
        )

    def _moments(
        self, examples: Iterable[tuple[Tensor, Tensor | None]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and deviation of each target's numbers, (size,) each, and of all pixels, over the examples of all processes."""
        sums: dict[str, Any] = dict.fromkeys((PIXELS, *self.names), 0)
        for patches, present in examples:
            values = {
                name: DESCRIPTORS[name].values(patches[:, :, 0].float(), present, self.config)
                for name in self.names
            }
            rows = {
                name: take(each, present) if DESCRIPTORS[name].of == "patch" else each
                for name, each in values.items()
            }
            rows[PIXELS] = take(self.model.mel(patches), present).reshape(-1, 1)
            for name, each in rows.items():
                kept = each.double()
                sums[name] = sums[name] + torch.stack(
                    [torch.full_like(kept[0], len(kept)), kept.sum(0), kept.square().sum(0)]
                )
        found = {}
        for name, total in sums.items():
            count, first, second = devices.summed(total).cpu()
            variance = (second - first.square() / count) / (count - 1).clamp(min=1)
            found[name] = (
                (first / count).float(),
                variance.clamp(min=LEAST_DEVIATION**2).sqrt().float(),
            )
        return found

    def stage_two_loss(
        self,
        patches: Tensor,
        target: Tensor,
        present: Tensor | None,
        masked: Tensor,
        *,
        visible: Tensor,
        hidden: Tensor,
        weights: tuple[Tensor | float, Tensor | float] = EQUAL,
        clips: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Mean of the targets' errors, each over its variance, and of the logarithms of the variances.

        Errors on visible and on masked patches are multiplied by `weights`, so that the mean over processes is that over patches.
        """
        if self.teacher and self.training:
            self.teacher.follow(self, self.config.pretrain.teacher_decay)
        errors = self.errors(
            patches,
            target,
            present,
            masked,
            visible=visible,
            hidden=hidden,
            weights=weights,
            clips=clips,
            groups=groups,
        )
        terms = [
            error * torch.exp(-self.log_variances[name]) + self.log_variances[name]
            for name, error in errors.items()
        ]
        return torch.stack(terms).mean()

    def errors(
        self,
        patches: Tensor,
        target: Tensor,
        present: Tensor | None,
        masked: Tensor,
        *,
        visible: Tensor,
        hidden: Tensor,
        weights: tuple[Tensor | float, Tensor | float] = EQUAL,
        clips: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean squared error of each target, in units of its variance; cross entropy of "contrast" and of estimators, in units of a guess's."""
        errors = self._disagreements(target[:, :, 0], present)
        if len(errors) == len(self.log_variances):
            return errors
        model, (of_visible, of_hidden) = self.model, weights
        known, filled = model.fill(
            patches, masked=masked, present=present, visible=visible
        )  # (B, N, D)
        seen = ~masked if present is None else present & ~masked
        counts = seen.sum(1, keepdim=True).clamp(
            min=1
        )  # of a clip that is one patch, none is visible
        whole = (known * seen[..., None]).sum(1) / counts  # (B, D)
        at_visible, at_hidden = take(known, visible), take(filled, hidden)  # (V, D), (H, D)
        if PIXELS in self.log_variances:
            reconstructed = model.decoder(model.align(at_hidden))  # (H, 1, M, W)
            errors[PIXELS] = (
                of_hidden
                * mean_square(reconstructed, take(model.mel(target), hidden))
                / self.get_buffer("pixels_variance")[0]
            )
        for name in self.names:
            wanted, head = self.standardised(name, target[:, :, 0], present), self.heads[name]
            if DESCRIPTORS[name].of == "clip":
                errors[name] = mean_square(head(whole), wanted)
            else:
                both = of_visible * mean_square(
                    head(at_visible), take(wanted, visible)
                ) + of_hidden * mean_square(head(at_hidden), take(wanted, hidden))
                errors[name] = both / 2
        if "distil" in self.log_variances:
            errors["distil"] = mean_square(
                self.heads["distil"](whole), self.get_buffer("elsewhere")[clips]
            )
        if self.teacher:
            vectors, heard = self.teacher(patches, present, masked, hidden)  # (H, D), (B, 128)
            if "latent" in self.taught:
                errors["latent"] = of_hidden * mean_square(self.heads["latent"](at_hidden), vectors)
            if "contrast" in self.taught:
                errors["contrast"] = self.contrast(whole, heard, clips, groups)
        return errors

    def _disagreements(self, patches: Tensor, present: Tensor | None) -> dict[str, Tensor]:
        """How far each estimator is from agreeing with itself on clips (B, N, M, W)."""

        def joined(own: Tensor) -> Tensor:
            """Mean over all processes, whose gradients are averaged too: each adds its own."""
            return (
                own + (devices.gathered(own[None].detach())[0].mean(0) - own).detach()
                if self.training
                else own
            )  # the first alone validates

        there = everything(patches) if present is None else present
        asked = {name: estimator_of(self.model.estimators, name) for name in self.estimated}
        exact = patches.to(next(self.parameters()).dtype)
        with torch.autocast(patches.device.type, enabled=False):
            return {
                name: estimator.disagreement(exact, there, self.config, joined)
                for name, estimator in asked.items()
            }

    def contrast(
        self,
        whole: Tensor,
        heard: Tensor,
        clips: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy of telling which clip a vector (B, D) is of, among what the teacher heard in all processes' clips (B, 128).

        With groups (B,), the others of its group are asked for, and neither the clip (B,) itself nor another crop of it, in which the same
        sounds are; a clip that is alone there, or held out, is asked for itself, among those of other groups.
        """
        everywhere, first = (
            devices.gathered(heard) if self.training else (heard, 0)
        )  # the first process alone validates
        asked = nn.functional.normalize(self.heads["contrast"](whole).float(), dim=1)
        with torch.autocast(
            whole.device.type, enabled=False
        ):  # of ten, bf16 tells apart no less than 0.06
            likeness = asked @ everywhere.float().T / TEMPERATURE  # (B, B of all)
        own = first + torch.arange(len(heard), device=heard.device)
        right: Tensor = own
        if groups is not None and clips is not None:
            itself = own[:, None] == torch.arange(
                len(everywhere), device=heard.device
            )  # (B, B of all)
            same_group, same_clip = (
                each[:, None] == (devices.gathered(each)[0] if self.training else each)
                for each in (groups, clips)
            )
            others = same_group & ~same_clip if self.training else torch.zeros_like(itself)
            answers = torch.where(others.any(1, keepdim=True), others, itself)
            likeness, right = (
                likeness.masked_fill(same_group & ~answers, OUT),
                answers / answers.sum(1, keepdim=True),
            )
        return nn.functional.cross_entropy(likeness, right) / math.log(max(2, len(everywhere)))

    @torch.no_grad()
    def standardised(self, name: str, patches: Tensor, present: Tensor | None = None) -> Tensor:
        """A target of patches (B, N, M, W), in deviations from its mean over training."""
        with torch.autocast(patches.device.type, enabled=False):
            values = (
                DESCRIPTORS[name].values(patches.float(), present, self.config).to(patches.dtype)
            )
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_scale")

    def figures(self, batches: Iterable[Any]) -> dict[str, float]:
        """Error of each target on held-out batches; 1 is what its mean, or a guess, would earn."""
        sums: dict[str, float] = {}
        count, device = 0, next(self.parameters()).device
        for batch in batches:
            patches, present, masked = (
                batch.patches.to(device),
                batch.present.to(device),
                batch.masked.to(device),
            )
            where: dict[str, Any] = {
                "visible": places(present & ~masked),
                "hidden": places(masked),
                "clips": batch.clips.to(device),
            }
            where["groups"] = None if batch.groups is None else batch.groups.to(device)
            for name, error in self.errors(patches, patches, present, masked, **where).items():
                sums[name] = sums.get(name, 0.0) + float(error) * len(batch.patches)
            count += len(batch.patches)
        return {f"{name}_error": value / count for name, value in sums.items()}


def mean_square(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error, in the arithmetic of what is wanted; 0 of nothing."""
    difference = found.to(wanted.dtype) - wanted
    return difference.square().sum() / max(1, difference.numel())


class Teacher(nn.Module):
    """A slow copy of what it teaches, which follows it step by step; it sees masked patches alone, so that nothing can be copied (M2D)."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.extractor, self.bottleneck = (
            copy.deepcopy(learner.model.extractor),
            copy.deepcopy(learner.model.bottleneck),
        )
        self.contrast = (
            copy.deepcopy(learner.heads["contrast"]) if "contrast" in learner.heads else None
        )
        self.requires_grad_(False).eval()

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
    def forward(
        self, patches: Tensor, present: Tensor | None, masked: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors (H, D) of masked patches, the mean of all normalised layers, and of clips (B, 128), of length one."""
        B, N = masked.shape
        seen = self.extractor(take(patches, hidden))  # (H, D)
        vectors = (
            seen.new_zeros(B * N, seen.shape[1]).index_copy(0, hidden, seen).unflatten(0, (B, N))
        )
        chosen, there = side_by_side(masked, len(hidden) if present is None else None)  # (B, K)
        layers = self.bottleneck(vectors, present=present, chosen=chosen, there=there)
        size = (vectors.shape[-1],)
        mean = torch.stack(
            [nn.functional.layer_norm(layer[:, 1:].float(), size) for layer in layers]
        ).mean(0)  # (B, K, D)
        last = put(layers[-1][:, 1:].float(), chosen, there, like=vectors)  # (B, N, D)
        clips = last.sum(1) / masked.sum(1, keepdim=True)  # (B, D)
        projected = (
            nn.functional.normalize(self.contrast(clips).float(), dim=1) if self.contrast else clips
        )
        return take(
            nn.functional.layer_norm(put(mean, chosen, there, like=vectors), size), hidden
        ), projected

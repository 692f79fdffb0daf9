"""Objectives of stage II beyond the paper's, several at once.

Each row of ``pretrain.objectives`` is one loss. ``context`` and ``prediction`` (B, N, D) are what
:meth:`Patchifier.predict_masked` returns; ``mean context`` (B, D) is the mean over a clip's visible
patches.

=========== ========================== ============================ ============= ========
name        target                     prediction                   loss          source
=========== ========================== ============================ ============= ========
pixels      mel bands of masked        decoder of `prediction`      MSE /         paper
            patches                                                 variance
descriptor  of each patch              linear heads of `context`    MSE           [1]
of patch                               and of `prediction`
descriptor  of the clip                linear head of mean context  MSE           [1]
of clip
contrast    EMA teacher's mean of a    MLP head of mean context     InfoNCE /     [2], [3]
            clip's masked patches                                   log B
distil      features of another model  linear head of mean context  MSE           [4]
notes of    notes of rendered clips    linear heads of `context`    cross entropy [9]
patch       (train.notes)              and of `prediction`
notes of    key, tempo, ... of         linear head of mean context  cross entropy [9]
clip        rendered clips
known_tonic key's tonic, time between  estimator                    cross entropy
known_tempo beats of rendered clips                                 / log K
tonic       other half of the clip     estimator                    cross entropy [5], [6]
                                                                    / log K
tempo       the clip stretched in time estimator                    cross entropy [7]
                                                                    / log K
=========== ========================== ============================ ============= ========

Targets are standardised over training, so that 1 is the error of their mean, or of a guess; cross
entropies of notes are relative to those of base rates. The sum of errors is weighted by learnt
variances [8]. With "pixels" alone, nothing here is used.

[1] Pascual et al. 2019 (the paper's reference [3] follows it). [2] M2D, Niizumi et al. 2023.
[3] CPC, van den Oord et al. 2018. [4] Hinton et al. 2015. [5] PESTO, Riou et al. 2023. [6] STONE,
Kong et al. 2024. [7] Quinton 2022. [8] Kendall et al. 2018. [9] the multi-task heads of Bittner et
al. 2022 (basic-pitch), on rendered music.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.config import Config, RequestError
from patchifier.nn.descriptors import DESCRIPTORS, require_descriptor
from patchifier.nn.equivariant import ESTIMATORS, estimator_of, require_estimators
from patchifier.nn.masking import masked_select, visible
from patchifier.nn.model import Patchifier
from patchifier.train import distributed
from patchifier.train.batches import Batch, to_device
from patchifier.train.note_labels import NoteHeads, NoteLabels
from patchifier.train.notes import NOTE_TARGETS
from patchifier.train.teacher import EMATeacher

PIXELS = "pixels"
CONTRAST = "contrast"
DISTIL = "distil"
LEAST_DEVIATION = 1e-4  # of a target's element, in units of log-mel: smaller ones are rounding
TEMPERATURE = 0.1  # of InfoNCE
PROJECTION_SIZE = 128  # of the vectors in InfoNCE
EMA_DECAY = 0.996  # of the teacher's weights, a step
EXCLUDED = -1e4  # similarity of a clip that is neither positive nor negative


def require_targets(config: Config) -> None:
    """Check `pretrain.objectives`: known names, allowed settings, pitch bands where needed.

    Raises
    ------
    RequestError
        If a name is unknown or given twice, or a setting does not fit; the message names it.
    """
    settings, targets = config.pretrain, config.pretrain.objectives
    _require_named(config)
    if targets == (PIXELS,) and not (settings.teacher_features or settings.note_labels):
        return
    known = (PIXELS, *DESCRIPTORS, CONTRAST, *ESTIMATORS, DISTIL, *NOTE_TARGETS)
    if not targets or len(set(targets)) < len(targets):
        raise RequestError(
            f"pretrain.objectives is {targets}, expected some of {', '.join(known)}, each once."
        )
    for name, only in (
        ("loss_patches", "masked"),
        ("loss_share", 1.0),
        ("extracted_patches", "visible"),
    ):
        if getattr(settings, name) != only:
            raise RequestError(
                f"pretrain.{name} is {getattr(settings, name)!r}, expected {only!r} with targets "
                "beside pixels."
            )
    for name in targets:
        if name not in known:
            raise RequestError(
                f"pretrain.objectives holds {name!r}, expected some of {', '.join(known)}."
            )
        if name in DESCRIPTORS:
            require_descriptor(name, config, what="the target")
    if (DISTIL in targets) != bool(settings.teacher_features):
        raise RequestError(
            "the target 'distil' and pretrain.teacher_features, a folder with a file for each "
            "clip, need each other."
        )
    _require_notes(config)
    require_estimators(sorted(trained_estimators(config)), config, field="pretrain.objectives")


def _require_named(config: Config) -> None:
    """Check that the targets which other settings need are among `pretrain.objectives`."""
    n_similarity = config.embed.n_similarity
    needed = {
        "pretrain.contrast_positives 'group'": "contrast" if config.pretrain.pairs else "",
        f"embed.n_similarity {n_similarity}": DISTIL if n_similarity else "",
    }
    for setting, target in needed.items():
        if target and target not in config.pretrain.objectives:
            raise RequestError(
                f"{setting} needs the target {target!r} in pretrain.objectives: add it, or leave "
                "this out."
            )


def _require_notes(config: Config) -> None:
    """Check that targets from notes and their folder come together, for consecutive patches."""
    settings = config.pretrain
    if bool(set(settings.objectives) & NOTE_TARGETS.keys()) != bool(settings.note_labels):
        raise RequestError(
            f"targets from notes ({', '.join(NOTE_TARGETS)}) and pretrain.note_labels, a folder "
            "with a file for each rendered clip, need each other."
        )
    if settings.note_labels and settings.stage_two_patches != "consecutive":
        raise RequestError(
            "pretrain.note_labels needs pretrain.stage_two_patches 'consecutive', not "
            f"{settings.stage_two_patches!r}."
        )


def frozen_modules(config: Config) -> tuple[str, ...]:
    """Modules of the model to which no target gives a gradient."""
    names = [name for name in config.pretrain.objectives if not estimator_behind(name)]
    if not names:
        return "extractor", "bottleneck", "align", "decoder", "predictor"
    frozen = () if PIXELS in names else ("align", "decoder")
    predicted = any(name == PIXELS or of_patches(name) for name in names)
    return frozen if predicted else (*frozen, "predictor")


def distil_weights(module: nn.Module) -> Tensor | None:
    """Weights (K, D) of the head that predicts another model's features; None without one."""
    if not isinstance(module, Objectives) or DISTIL not in module.heads:
        return None
    head = module.heads[DISTIL]
    assert isinstance(head, nn.Linear)
    return head.weight.detach().cpu()


def estimator_behind(name: str) -> str | None:
    """Estimator that a target trains, or None if it trains the network."""
    known = NOTE_TARGETS.get(name)
    return name if name in ESTIMATORS else known.estimator if known else None


def trained_estimators(config: Config) -> frozenset[str]:
    """Estimators of the model that `pretrain.objectives` train."""
    return frozenset(filter(None, map(estimator_behind, config.pretrain.objectives)))


def of_patches(name: str) -> bool:
    """Whether a target has a value for each patch."""
    target = DESCRIPTORS.get(name) or NOTE_TARGETS.get(name)
    return target is not None and target.of == "patch"


class Objectives(nn.Module):
    """A model with the heads, uncertainty weights and teacher that its targets need.

    ``pretrain.objectives`` names the losses. Targets are standardised by the examples of all
    processes: target patches (B, N, 1, M, T) of this one's share of training, and which are valid
    (B, N). Rows of NaN of `teacher_features` (clips, E), for the target "distil", have no loss.
    """

    def __init__(
        self,
        model: Patchifier,
        config: Config,
        examples: Iterable[tuple[Tensor, Tensor | None]],
        teacher_features: Tensor | None = None,
        note_labels: NoteLabels | None = None,
    ) -> None:
        super().__init__()
        require_targets(config)
        targets = config.pretrain.objectives
        self.model, self.config = model, config
        self.described = [name for name in targets if name in DESCRIPTORS]
        self.estimated = [name for name in targets if name in ESTIMATORS]
        statistics = self._statistics(examples)
        pixels_variance = statistics.pop(PIXELS)[1].square()
        self.register_buffer("pixels_variance", pixels_variance, persistent=False)
        self.register_buffer("teacher_features", teacher_features, persistent=False)
        D = config.model.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.pretrain.seed)
            self.heads = nn.ModuleDict()
            for name, (mean, deviation) in statistics.items():
                self.register_buffer(f"{name}_mean", mean)
                self.register_buffer(f"{name}_scale", deviation)
                self.heads[name] = nn.Linear(D, len(mean))
            if teacher_features is not None:
                self.heads[DISTIL] = nn.Linear(D, teacher_features.shape[1])
            if CONTRAST in targets:
                layers = nn.Linear(D, D), nn.GELU(), nn.Linear(D, PROJECTION_SIZE)
                self.heads[CONTRAST] = nn.Sequential(*layers)
            self.notes = NoteHeads(targets, note_labels, D) if note_labels else None
            self.teacher = EMATeacher(self) if CONTRAST in targets else None
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in targets}
        )

    def _statistics(
        self, examples: Iterable[tuple[Tensor, Tensor | None]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and deviation (size,) of each descriptor, and of all pixels, over all processes."""
        sums: dict[str, Any] = dict.fromkeys((PIXELS, *self.described), 0)
        for patches, valid in examples:
            rows = {PIXELS: masked_select(self.model.mel(patches), valid).reshape(-1, 1)}
            for name in self.described:
                values = DESCRIPTORS[name].values(patches[:, :, 0].float(), valid, self.config)
                rows[name] = masked_select(values, valid) if of_patches(name) else values
            for name, values in rows.items():
                exact = values.double()
                count = torch.full_like(exact[0], len(exact))
                moments = torch.stack([count, exact.sum(0), exact.square().sum(0)])
                sums[name] = sums[name] + moments
        found = {}
        for name, total in sums.items():
            count, first, second = distributed.summed(total).cpu()
            variance = (second - first.square() / count) / (count - 1).clamp(min=1)
            deviation = variance.clamp(min=LEAST_DEVIATION**2).sqrt()
            found[name] = (first / count).float(), deviation.float()
        return found

    def stage_two_loss(self, batch: Batch) -> Tensor:
        """Mean over targets of error / variance + log variance, with learnt variances."""
        if self.teacher and self.training:
            self.teacher.update(self, EMA_DECAY)
        terms = [
            error * torch.exp(-self.log_variances[name]) + self.log_variances[name]
            for name, error in self.errors(batch).items()
        ]
        return torch.stack(terms).mean()

    def errors(self, batch: Batch) -> dict[str, Tensor]:
        """Error of each target; 1 is that of the target's mean, or of a guess."""
        errors = self._estimator_losses(batch)
        if len(errors) == len(self.log_variances):
            return errors
        model, heads, mask = self.model, self.heads, batch.mask
        keep = visible(mask, batch.valid)
        context, prediction = model.predict_masked(batch.patches, mask=mask, valid=batch.valid)
        counts = keep.sum(1, keepdim=True).clamp(min=1)  # a clip of one patch has none visible
        mean_context = (context * keep[..., None]).sum(1) / counts  # (B, D)
        encoded, predicted = masked_select(context, keep), masked_select(prediction, mask)  # (P, D)
        if PIXELS in self.log_variances:
            error = mean_square(
                model.forward_decoder(predicted), masked_select(model.mel(batch.target), mask)
            )
            errors[PIXELS] = batch.weight * error / self.get_buffer("pixels_variance")[0]
        for name in self.described:
            target, head = self.standardised(name, batch.target[:, :, 0], batch.valid), heads[name]
            if not of_patches(name):
                errors[name] = mean_square(head(mean_context), target)
                continue
            seen = mean_square(head(encoded), masked_select(target, keep))
            unseen = mean_square(head(predicted), masked_select(target, mask))
            errors[name] = (batch.visible_weight * seen + batch.weight * unseen) / 2
        if self.notes:
            errors |= self.notes(batch, context, prediction, mean_context, keep=keep)
        if DISTIL in self.log_variances:
            features = self.get_buffer("teacher_features")[batch.clips]
            known = features[:, 0].isfinite()
            losses = (heads[DISTIL](mean_context[known]).float() - features[known]).square()
            alone = not self.training  # only the first process validates
            errors[DISTIL] = distributed.mean_of_rows(losses.mean(1), alone=alone)
        if self.teacher:
            projected = self.teacher(batch.patches, batch.valid, mask)  # (B, 128)
            errors[CONTRAST] = self.info_nce(mean_context, projected, batch.clips, batch.groups)
        return errors

    def _estimator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the estimators on whole clips."""

        def over_processes(own: Tensor) -> Tensor:
            """Mean over all processes. Gradients are averaged later, so each adds its own."""
            if not self.training:  # only the first process validates
                return own
            return own + (distributed.gathered(own[None].detach())[0].mean(0) - own).detach()

        patches = batch.target[:, :, 0].to(next(self.parameters()).dtype)
        with torch.autocast(patches.device.type, enabled=False):
            errors = {
                name: estimator_of(self.model.estimators, name).consistency_loss(
                    patches, batch.valid, self.config, over_processes
                )
                for name in self.estimated
            }
        if self.notes:
            errors |= self.notes.estimator_losses(batch, self.model.estimators, self.config)
        return errors

    def info_nce(
        self,
        mean_context: Tensor,
        projected: Tensor,
        clips: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """InfoNCE of mean contexts (B, D) and the teacher's vectors (B, 128) of all processes.

        The positive is the same clip. With groups (B,), positives are the other clips of the group,
        and the clip (B,) and its other crops, which share sounds with it, are excluded. A clip that
        is alone in its group, or held out, is its own positive among clips of other groups.
        """
        keys, first = distributed.gathered(projected) if self.training else (projected, 0)
        queries = functional.normalize(self.heads[CONTRAST](mean_context).float(), dim=1)
        with torch.autocast(queries.device.type, enabled=False):  # bf16 resolves 10 to 0.06
            similarity = queries @ keys.float().T / TEMPERATURE  # (B, B of all)
        own = first + torch.arange(len(projected), device=projected.device)
        positives: Tensor = own
        if groups is not None and clips is not None:
            itself = own[:, None] == torch.arange(len(keys), device=keys.device)  # (B, B of all)
            same_group, same_clip = (
                each[:, None] == (distributed.gathered(each)[0] if self.training else each)
                for each in (groups, clips)
            )
            others = same_group & ~same_clip if self.training else torch.zeros_like(itself)
            chosen = torch.where(others.any(1, keepdim=True), others, itself)
            similarity = similarity.masked_fill(same_group & ~chosen, EXCLUDED)
            positives = chosen / chosen.sum(1, keepdim=True)
        return functional.cross_entropy(similarity, positives) / math.log(max(2, len(keys)))

    @torch.no_grad()
    def standardised(self, name: str, patches: Tensor, valid: Tensor | None = None) -> Tensor:
        """Z-scores of a descriptor of patches (B, N, M, T), relative to training."""
        with torch.autocast(patches.device.type, enabled=False):
            values = DESCRIPTORS[name].values(patches.float(), valid, self.config)
            values = values.to(patches.dtype)
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_scale")

    def figures(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean error of each target on held-out batches, by ``NAME_error``.

        Targets from notes and of distillation count only clips that have notes or features.
        """
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        device = next(self.parameters()).device
        for batch in batches:
            labelled = self.notes.labels.labelled(batch.clips.tolist()) if self.notes else 0
            for name, error in self.errors(to_device(batch, device)).items():
                clips = labelled if name in NOTE_TARGETS else len(batch.patches)
                if name == DISTIL:
                    known = self.get_buffer("teacher_features")[batch.clips, 0].isfinite()
                    clips = int(known.sum())
                sums[name] = sums.get(name, 0.0) + float(error) * clips
                counts[name] = counts.get(name, 0) + clips
        return {f"{name}_error": value / max(1, counts[name]) for name, value in sums.items()}


def mean_square(found: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in the precision of the target; 0 of an empty tensor."""
    difference = found.to(target.dtype) - target
    return difference.square().sum() / max(1, difference.numel())

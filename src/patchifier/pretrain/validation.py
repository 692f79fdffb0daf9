"""Validation of both stages on held-out clips: the model, three predictors without one, and signs of collapse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchifier.augment import NO_AUGMENTATION
from patchifier.cache import Cache
from patchifier.config import Config
from patchifier.pretrain.batches import Batch, make_batch
from patchifier.pretrain.sides import VALIDATION_CLIPS, Sides
from patchifier.runs import generator


def validator(stage: str, data: Cache, sides: Sides, config: Config) -> Callable[[Any], dict[str, float]]:
    """Make a validation on held-out clips: the same crops and masks every time, no augmentation."""
    mean_patch = training_mean_patch(data, sides.parts[0], config)
    batches = list(validation_batches(data, sides.validation, config))
    bands = config.model.mel_bands
    predictors = masked_predictors([replace(batch, patches=batch.patches[..., :bands, :]) for batch in batches], mean_patch)
    autoencoding = {"mean_patch_mse": mean_of((batch.patches[batch.present][..., :bands, :] - mean_patch).square() for batch in batches)}

    def validate_one(model: Any) -> dict[str, float]:
        to = next(model.parameters()).device
        errors = ((model.autoencode(batch.patches.to(to)).cpu() - model.mel(batch.patches))[batch.present].square() for batch in batches)
        return {"mse": mean_of(errors), **autoencoding}

    def validate_two(trained: Any) -> dict[str, float]:
        model, to = getattr(trained, "model", trained), next(trained.parameters()).device
        errors, embeddings = [], []
        for batch in batches:
            patches, present, masked = batch.patches.to(to), batch.present.to(to), batch.masked.to(to)
            filled = model.reconstruct(patches, masked=masked, present=present).cpu()
            errors.append((filled - model.mel(batch.patches))[batch.masked].square())
            sequence = model.encode(patches, present=present)[-1][:, 1:]
            embeddings.append((sequence * present[..., None]).sum(1) / present.sum(1, keepdim=True))
        figures = trained.figures(batches) if model is not trained else {}
        return {"masked_mse": mean_of(errors), **predictors, **health(torch.cat(embeddings).float().cpu()), **figures}

    return validate_one if stage == "one" else validate_two


def measured_elsewhere(model: Any) -> dict[str, float]:
    """Stand in for a validation that the first process makes for all."""
    return {}


def validation_batches(data: Cache, clips: np.ndarray, config: Config) -> list[Batch]:
    """Held-out clips in batches of at most 32, unaugmented, with fixed crops and masks."""
    unlike = replace(config, pretrain=replace(config.pretrain, target="augmented"))
    return [
        make_batch(
            data,
            clips[start : start + 32],
            unlike,
            draws=generator(config.pretrain.seed, "window", start),
            masks=generator(config.pretrain.seed, "mask", -1 - start & 0xFFFFFFFF),
            augmentation=NO_AUGMENTATION,
            layout="consecutive",
        )
        for start in range(0, len(clips), 32)
    ]


def mean_of(parts: Any) -> float:
    """Mean over all numbers of several tensors."""
    parts = list(parts)
    return float(sum(part.double().sum() for part in parts) / sum(part.numel() for part in parts))


def training_mean_patch(data: Cache, clips: np.ndarray, config: Config) -> Tensor:
    """Mean patch (1, M, W) of training clips: a mean over time, since patches start anywhere."""
    some = clips[np.linspace(0, len(clips) - 1, min(len(clips), VALIDATION_CLIPS)).astype(int)]
    bands = np.mean([np.asarray(data.log_mel(int(index)), np.float32).mean(0) for index in some], axis=0)  # (M,)
    return torch.from_numpy(bands)[None, : config.model.mel_bands, None].expand(1, -1, config.model.frames)


def masked_predictors(batches: list[Batch], mean_patch: Tensor) -> dict[str, float]:
    """Masked-patch MSE of three predictors without a model; a model must beat them all to have learned anything."""
    errors: dict[str, list[Tensor]] = {}
    for batch in batches:
        any_seen = (batch.present & ~batch.masked).any(1)[:, None, None, None, None]  # of a clip that is one patch, none is
        for name, guess in {"mean_patch": mean_patch, **guesses(batch)}.items():
            guess = torch.where(any_seen, guess, mean_patch)
            errors.setdefault(f"{name}_mse", []).append((batch.patches - guess)[batch.masked].square())
    return {name: mean_of(parts) for name, parts in errors.items()}


def guesses(batch: Batch) -> dict[str, Tensor]:
    """Patches as two predictors without a model fill them in.

    The mean of the clip's visible patches, (B, 1, 1, M, W); and band means of the nearest visible patches, interpolated over time and
    shrunk halfway to the clip's mean, (B, N, 1, M, 1): the hard one.
    """
    visible = batch.present & ~batch.masked
    weights = visible[:, :, None, None, None].float()
    clip_mean = (batch.patches * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    bands = interpolate_bands(batch.patches.mean(-1), visible)  # (B, N, 1, M)
    return {"visible_mean": clip_mean, "interpolation": 0.5 * bands[..., None] + 0.5 * clip_mean.mean(-1, keepdim=True)}


def interpolate_bands(bands: Tensor, visible: Tensor) -> Tensor:
    """Band means (B, N, 1, M) of hidden patches, linear in time between the nearest visible ones, constant beyond the last."""
    B, N = visible.shape
    place = torch.arange(N).expand(B, N)
    before = torch.where(visible, place, -1).cummax(1).values
    after = torch.where(visible, place, N).flip(1).cummin(1).values.flip(1)
    before, after = torch.where(before < 0, after, before), torch.where(after >= N, before, after)
    before, after = before.clamp(0, N - 1), after.clamp(0, N - 1)
    part = ((place - before) / (after - before).clamp(min=1)).clamp(0, 1)[..., None, None]  # (B, N, 1, 1)
    clip = torch.arange(B)[:, None]
    return torch.lerp(bands[clip, before], bands[clip, after], part)


def health(embeddings: Tensor) -> dict[str, float]:
    """Signs of collapse in embeddings (n, D).

    Mean standard deviation over clips, and the effective rank: the exponential of the entropy of the normalised singular values
    (Roy and Vetterli 2007), between 1 (collapsed) and min(n, D).
    """
    centred = (embeddings - embeddings.mean(0)).double()
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"embedding_std": float(centred.square().mean(0).sqrt().mean()), "effective_rank": float(entropy.exp())}

"""Pre-training in two stages (paper 4.2): autoencode single patches; then fill in masked ones.

A run folder: ``stage-one/`` and ``stage-two/`` (metrics, validation, state), ``model/`` (the result), ``config.json``, ``run.json``.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from patchifier import augment, checkpoint, spectrogram
from patchifier.cache import Cache, Progress, silent
from patchifier.checkpoint import Checkpoint, replaced_file
from patchifier.config import Config, PretrainConfig, RequestError, TrainingConfig
from patchifier.datasets import hold_out
from patchifier.model import Patchifier, draw_mask
from patchifier.runs import Job, Run, batch_indices, fit, generator

PICTURE_RATIOS = (0.25, 0.5, 0.75, 0.9)
VALIDATION_CLIPS = 256  # at most: a validation must stay cheap beside an epoch of 16,000 clips


def pretrain(
    cache: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[str], Progress] = lambda title: silent,
) -> Path:
    """Pre-train a Patchifier on a cache of log-mels.

    Parameters
    ----------
    cache : str or Path
        From :func:`patchifier.cache.prepare`.
    out : str or Path
        Run folder.
    config : Config
        The paper's setting by default. Its spectrogram section must be the cache's.
    init : str or Path
        Model folder to start from.
    resume : bool
        Go on with the run in `out`.
    device : str
        "auto", "cpu", "cuda", ...
    progress : callable
        Given a stage's title, returns a function that shows its progress.

    Returns
    -------
    Path
        The model folder.

    Raises
    ------
    RequestError
        If cache, config and initial model do not fit together, or there are too few clips.
    Interrupted
        After SIGINT or SIGTERM; go on with `resume`.
    """
    config, data = config or Config(), Cache(cache)
    data.require(config.spectrogram)
    model = initial_model(config, init)
    sides = split(data, config.pretrain)
    facts = {
        "kind": "pretrain",
        "cache": str(data.path),
        "dataset": data.name,
        "clips": {"train": len(sides.train), "validation": len(sides.validation)},
        "parameters": model.parameter_count(),
        "seed": config.pretrain.seed,
    }
    with Run(out, config, resume=resume, facts=facts) as run:
        for stage in ("one", "two"):
            if config.pretrain.stages in ("both", stage):
                train_stage(stage, model, data, sides, config, run, resume=resume, device=device, progress=progress)
        if config.pretrain.stages != "one":
            write_reconstructions(run.path / "stage-two" / "reconstructions.safetensors", model, data, sides.validation, config)
        described = {name: run.facts[name] for name in ("dataset", "clips", "seed", "command", "machine", "started")}
        steps = {f"steps, stage {stage}": number for stage, number in stage_steps(config.pretrain, len(sides.train)).items()}
        checkpoint.save(run.path / "model", Checkpoint(model, config, facts=described | steps))
    return run.path / "model"


def initial_model(config: Config, init: str | Path | None) -> Patchifier:
    """Make a model by the seed, or take one from a folder."""
    if init is None:
        return Patchifier(config.model, seed=config.pretrain.seed)
    loaded = checkpoint.load(init)
    if loaded.config.model != config.model:
        differ = [field.name for field in dataclasses.fields(config.model) if getattr(config.model, field.name) != getattr(loaded.config.model, field.name)]
        raise RequestError(f"the model in {init} differs from the config in model.{', model.'.join(differ)}: give --config {init}/config.json.")
    return loaded.model


@dataclass(frozen=True)
class Sides:
    """Indices of the clips that train and of those that validate."""

    train: np.ndarray
    validation: np.ndarray


def split(data: Cache, config: PretrainConfig) -> Sides:
    """Choose the clips that train and validate; clips of a test split do neither."""
    clips = data.clips
    if any(clip.split for clip in clips):
        held = [clip.split == "valid" for clip in clips]
        used = [clip.split != "test" for clip in clips]
    else:
        used = [True] * len(clips)
        if config.validation_fold is not None:
            held = [clip.fold == config.validation_fold for clip in clips]
            if not any(held):
                raise RequestError(f"pretrain.validation_fold is {config.validation_fold}, but no clip of {data.path} is in that fold.")
        else:
            held = hold_out(clips, fraction=config.validation_fraction, seed=config.seed)
    train = np.array([index for index in range(len(clips)) if used[index] and not held[index]], int)
    validation = np.array([index for index in range(len(clips)) if used[index] and held[index]], int)
    if not len(train):
        raise RequestError(f"cache {data.path} has no clip left to train on ({len(clips)} in all, {len(validation)} held out).")
    # The same few, evenly spread, at every validation.
    return Sides(train, validation[np.linspace(0, len(validation) - 1, min(len(validation), VALIDATION_CLIPS)).astype(int)])


def stage_steps(config: PretrainConfig, clips: int) -> dict[str, int]:
    """Optimiser steps of each stage that runs."""
    stages = {"one": config.stage_one, "two": config.stage_two}
    return {name: training.total_steps(clips) for name, training in stages.items() if config.stages in ("both", name)}


def train_stage(
    stage: str,
    model: Patchifier,
    data: Cache,
    sides: Sides,
    config: Config,
    run: Run,
    *,
    resume: bool,
    device: str,
    progress: Callable[[str], Progress],
) -> None:
    """Run one stage of pre-training."""
    settings = config.pretrain
    training = settings.stage_one if stage == "one" else settings.stage_two
    prepare = Batches(data, sides.train, config, stage, training)
    job = Job(
        model,
        clips=len(sides.train),
        batch=prepare,
        loss=stage_one_loss if stage == "one" else lambda model, batch: stage_two_loss(model, batch, settings),
        validate=validator(stage, data, sides, config) if len(sides.validation) else None,
    )
    fit(
        job,
        run.path / f"stage-{stage}",
        config=training,
        seed=settings.seed,
        validate_every=settings.validate_every or max(50, -(-len(sides.train) // training.batch)),
        checkpoint_every_s=settings.checkpoint_every_s,
        precision=settings.precision,
        device=device,
        resume=resume,
        progress=progress(f"stage {'I' if stage == 'one' else 'II'}"),
    )


# --- batches and losses ---


@dataclass(frozen=True)
class Batch:
    """Patches as the model sees them, what to reconstruct, and two masks; (B, N, 1, M, W) and (B, N)."""

    patches: Tensor
    target: Tensor
    present: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Batches:
    """Step -> augmented batch, a pure function of the seed and the step."""

    data: Cache
    clips: np.ndarray
    config: Config
    stage: str
    training: TrainingConfig

    def __call__(self, step: int) -> Batch:
        """Draw clips, augmentation and mask of a step."""
        settings = self.config.pretrain
        seed = settings.seed * 2 + (self.stage == "two")  # the stages draw apart
        chosen = self.clips[batch_indices(seed, step, clips=len(self.clips), batch=self.training.batch)]
        layout = settings.stage_one_patches if self.stage == "one" else settings.stage_two_patches
        return make_batch(
            self.data,
            chosen,
            self.config,
            draws=generator(seed, "augment", step),
            masks=generator(seed, "mask", step),
            augmentation=self.config.augment,
            layout=layout,
        )


def make_batch(
    data: Cache,
    chosen: np.ndarray,
    config: Config,
    *,
    draws: np.random.Generator,
    masks: np.random.Generator,
    augmentation: Any,
    layout: Any,
) -> Batch:
    """Read clips, augment them, cut them into patches and choose what to mask."""
    frames, model, settings = data.frames[chosen], config.model, config.pretrain
    drawn = augment.draw(
        draws, frames, config=augmentation, patches=settings.patches, bands=model.bands, width=model.frames, layout=layout, most=model.positions
    )
    spans = augment.span(drawn, frames, model.frames)
    augmented, clean = augment.apply(
        drawn, data.read(chosen, spans), offsets=spans[:, 0], frames=frames, silence=config.spectrogram.silence, width=model.frames
    )
    masked = draw_mask(masks, drawn.present, settings.mask_ratio)
    target = augmented if settings.target == "augmented" else clean
    return Batch(augmented, target, torch.from_numpy(drawn.present), torch.from_numpy(masked))


def stage_one_loss(model: Any, batch: Batch) -> Tensor:
    """MSE of autoencoded patches."""
    to = next(model.parameters()).device
    return model.stage_one_loss(batch.patches.to(to), batch.target.to(to), batch.present.to(to))


def stage_two_loss(model: Any, batch: Batch, settings: PretrainConfig) -> Tensor:
    """MSE of patches filled in."""
    to = next(model.parameters()).device
    return model.stage_two_loss(batch.patches.to(to), batch.target.to(to), batch.present.to(to), batch.masked.to(to), settings)


# --- validation ---


def validator(stage: str, data: Cache, sides: Sides, config: Config) -> Callable[[Any], dict[str, float]]:
    """Make a validation on held-out clips: the same crops and masks every time, no augmentation."""
    mean_patch = training_mean_patch(data, sides.train, config)
    batches = list(validation_batches(data, sides.validation, config))
    predictors = masked_predictors(batches, mean_patch)
    autoencoding = {"mean_patch_mse": mean_of((batch.patches[batch.present] - mean_patch).square() for batch in batches)}

    def validate_one(model: Any) -> dict[str, float]:
        to = next(model.parameters()).device
        errors = ((model.autoencode(batch.patches.to(to)).cpu() - batch.patches)[batch.present].square() for batch in batches)
        return {"mse": mean_of(errors), **autoencoding}

    def validate_two(model: Any) -> dict[str, float]:
        to = next(model.parameters()).device
        errors, embeddings = [], []
        for batch in batches:
            patches, present, masked = batch.patches.to(to), batch.present.to(to), batch.masked.to(to)
            filled = model.reconstruct(patches, masked=masked, present=present).cpu()
            errors.append((filled - batch.patches)[batch.masked].square())
            sequence = model.encode(patches, present=present)[-1][:, 1:]
            embeddings.append((sequence * present[..., None]).sum(1) / present.sum(1, keepdim=True))
        return {"masked_mse": mean_of(errors), **predictors, **health(torch.cat(embeddings).float().cpu())}

    return validate_one if stage == "one" else validate_two


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
            augmentation=augment.NO_AUGMENTATION,
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
    return torch.from_numpy(bands)[None, :, None].expand(1, config.model.bands, config.model.frames)


def masked_predictors(batches: list[Batch], mean_patch: Tensor) -> dict[str, float]:
    """Masked-patch MSE of three predictors without a model; a model must beat them all to have learned anything.

    The mean patch of the data; the mean of the clip's visible patches; and band means of the nearest visible patches, interpolated over
    time and shrunk halfway to the clip's mean (the hard one).
    """
    errors: dict[str, list[Tensor]] = {"mean_patch_mse": [], "visible_mean_mse": [], "interpolation_mse": []}
    for batch in batches:
        visible = batch.present & ~batch.masked
        weights = visible[:, :, None, None, None].float()
        clip_mean = (batch.patches * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)  # (B, 1, 1, M, W)
        bands = interpolate_bands(batch.patches.mean(-1), visible)  # (B, N, 1, M)
        flat = clip_mean.mean(-1, keepdim=True)  # (B, 1, 1, M, 1)
        shrunk = 0.5 * bands[..., None] + 0.5 * flat
        guesses = {"mean_patch_mse": mean_patch, "visible_mean_mse": clip_mean, "interpolation_mse": shrunk}
        for name, guess in guesses.items():
            errors[name].append((batch.patches - guess)[batch.masked].square())
    return {name: mean_of(parts) for name, parts in errors.items()}


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


# --- pictures ---


@torch.no_grad()
def write_reconstructions(path: Path, model: Patchifier, data: Cache, clips: np.ndarray, config: Config) -> None:
    """Write patches of one held-out clip with what the model fills in at several mask ratios, for the report."""
    if not len(clips):
        return
    index = int(clips[len(clips) // 2])
    clip = data.clips[index]
    log_mel = torch.from_numpy(np.array(data.log_mel(index), np.float32).T)
    patches = spectrogram.cut(log_mel, length=config.model.frames, tail="anchor", silence=config.spectrogram.silence)[: config.pretrain.patches]
    model = model.cpu().eval()
    tensors = {"original": patches[:, 0].contiguous()}
    for ratio in PICTURE_RATIOS:
        masked = draw_mask(generator(config.pretrain.seed, "mask", 2**40), np.ones((1, len(patches)), bool), ratio)
        filled = model.reconstruct(patches[None], masked=torch.from_numpy(masked))[0]
        tensors |= {f"masked_{ratio}": torch.from_numpy(masked[0].astype(np.uint8)), f"reconstructed_{ratio}": filled[:, 0].contiguous()}
    with replaced_file(path) as new:
        safetensors.torch.save_file(tensors, new, metadata=picture_facts(clip.id, clip.info, config))


def picture_facts(clip: str, info: dict[str, str], config: Config) -> dict[str, str]:
    """Collect what a reader of reconstructions needs to know to draw them."""
    centres = spectrogram.mel_edges_hz(config.spectrogram)[1:-1]
    return {
        "clip": clip,
        "title": " – ".join(info[key] for key in ("artist", "title") if key in info),
        "frame_s": str(config.spectrogram.frame_s),
        "scale": str(config.spectrogram.scale),
        "band_hz": json.dumps([round(float(hertz), 1) for hertz in centres]),
        "silence": str(config.spectrogram.silence),
    }

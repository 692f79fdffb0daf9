"""Validation on held-out clips: errors of the model and of references, signs of collapse."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import predictors, spectrogram
from patchifier.augment import NO_AUGMENTATION
from patchifier.cache import Cache
from patchifier.config import Config
from patchifier.datasets.splits import VALIDATION_CLIPS, Splits, evenly
from patchifier.nn.masking import visible
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator
from patchifier.train import references
from patchifier.train.batches import Batch, make_batch
from patchifier.train.references import Kriging

HEALTH_CLIPS = 64  # held-out clips, evenly spread, for the effect of order, variances and onsets


def validator(
    stage: str, data: Cache, splits: Splits, config: Config
) -> Callable[[Any], dict[str, float]]:
    """Make a function that validates a model on fixed crops and masks, without augmentation."""
    statistics = training_statistics(data, splits.slices[0], config)
    batches = list(validation_batches(data, splits.valid, config))
    make = validator_one if stage == "one" else validator_two
    return make(batches, statistics, config)


def validator_one(
    batches: list[Batch], statistics: "TrainingStatistics", config: Config
) -> Callable[[Any], dict[str, float]]:
    """Make the validation of stage I: the MSE of single patches, and that of the mean patch."""
    bands = config.spectrogram.n_mels
    errors = (
        batch.patches[batch.valid][..., :bands, :] - statistics.mean_patch for batch in batches
    )
    mean_patch = {"mean_patch_mse": mean_of(error.square() for error in errors)}

    def validate(model: Any) -> dict[str, float]:
        to = next(model.parameters()).device
        errors = (
            (model.autoencode(batch.patches.to(to)).cpu() - model.mel(batch.patches))[batch.valid]
            for batch in batches
        )
        return {"mse": mean_of(error.square() for error in errors), **mean_patch}

    return validate


def validator_two(
    batches: list[Batch], statistics: "TrainingStatistics", config: Config
) -> Callable[[Any], dict[str, float]]:
    """Make the validation of stage II: MSE of masked patches and references, signs of collapse.

    ``shuffled_mse`` and ``equal_positions_mse`` are the masked MSE plus the increase by shuffling
    patches, or by equal positions, on at most 64 of the clips. Variances and onsets are of these
    clips too, so that they take about 0.3 times the time of the rest.
    """
    bands, scale = config.spectrogram.n_mels, config.spectrogram.db_scale
    predictors = masked_predictors(
        [replace(batch, patches=batch.patches[..., :bands, :]) for batch in batches], statistics
    )
    step = -(-sum(len(batch.patches) for batch in batches) // HEALTH_CLIPS)
    some = [every(batch, step) for batch in batches]
    orders = [
        shuffled_visible(batch, generator(config.pretrain.seed, "shuffle", number))
        for number, batch in enumerate(some)
    ]

    def validate(trained: Any) -> dict[str, float]:
        model = getattr(trained, "model", trained)
        drawn = [reconstruct(model, batch, batch.patches) for batch in batches]
        mse, plain = masked_mse(model, batches, drawn), [part[::step] for part in drawn]
        shuffled = [
            reconstruct(model, batch, in_order(batch.patches, order))
            for batch, order in zip(some, orders, strict=True)
        ]
        with equal_positions(model, config.pretrain.n_patches):
            unplaced = [reconstruct(model, batch, batch.patches) for batch in some]
        rest = mse - masked_mse(model, some, plain)
        return {
            "masked_mse": mse,
            **predictors,
            "shuffled_mse": rest + masked_mse(model, some, shuffled),
            "equal_positions_mse": rest + masked_mse(model, some, unplaced),
            **drawn_figures(
                [model.mel(batch.patches) for batch in some],
                plain,
                [batch.mask for batch in some],
                scale=scale,
            ),
            **health(torch.cat([mean_vectors(model, batch) for batch in batches])),
            **(trained.figures(batches) if model is not trained else {}),
        }

    return validate


def every(batch: Batch, step: int) -> Batch:
    """Select every `step`-th clip of a batch."""
    arrays = {n: each for n, each in vars(batch).items() if isinstance(each, Tensor | np.ndarray)}
    some: dict[str, Any] = {name: each[::step] for name, each in arrays.items()}
    return replace(batch, **some)


def reconstruct(model: Patchifier, batch: Batch, patches: Tensor) -> Tensor:
    """Reconstruct patches (B, N, 1, M, T) under the mask of a batch: (B, N, M, T), on the CPU."""
    to = next(model.parameters()).device
    found = model.reconstruct(patches.to(to), mask=batch.mask.to(to), valid=batch.valid.to(to))
    return found.float().cpu()


def mean_vectors(model: Patchifier, batch: Batch) -> Tensor:
    """Mean of the last layer over the patches of each clip, without a mask: (B, D)."""
    to = next(model.parameters()).device
    valid = batch.valid.to(to)
    sequence = model.forward_encoder(batch.patches.to(to), valid=valid)[-1][:, 1:]
    return ((sequence * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)).float().cpu()


def masked_mse(model: Patchifier, batches: list[Batch], drawn: list[Tensor]) -> float:
    """Mean squared error over the masked patches of all batches."""
    return mean_of(
        (each - model.mel(batch.patches))[batch.mask].square()
        for batch, each in zip(batches, drawn, strict=True)
    )


def shuffled_visible(batch: Batch, draws: np.random.Generator) -> Tensor:
    """Order of patches (B, N) that moves each visible patch of a clip, and no other."""
    keep = visible(batch.mask, batch.valid).numpy()
    order = np.tile(np.arange(keep.shape[1]), (len(keep), 1))
    for row, seen in zip(order, keep, strict=True):
        cycle = draws.permutation(np.flatnonzero(seen))
        row[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(order)


def in_order(patches: Tensor, order: Tensor) -> Tensor:
    """Reorder patches (B, N, ...) by an order (B, N)."""
    return patches[torch.arange(len(order))[:, None], order]


@contextlib.contextmanager
def equal_positions(model: Patchifier, n_patches: int) -> Iterator[None]:
    """Replace positions of a model's first patches by their mean.

    The position of CLS stays. At the end of the block the weights are restored bit for bit.
    """
    parts = [getattr(model, name) for name in ("bottleneck", "predictor") if hasattr(model, name)]
    spans = [part.positions.data[1 : 1 + n_patches] for part in parts]  # (N, D), without CLS
    kept = [span.clone() for span in spans]
    try:
        for span in spans:
            span.copy_(span.mean(0, keepdim=True).expand_as(span))
        yield
    finally:
        for span, before in zip(spans, kept, strict=True):
            span.copy_(before)


def drawn_figures(
    originals: list[Tensor], drawn: list[Tensor], masks: list[Tensor], *, scale: float
) -> dict[str, float]:
    """Reconstructed fractions of variance in and between masked patches, F-measure of onsets.

    Patches are (B, N, 1, M, T), masks (B, N); `scale` is the value of one decibel.
    """
    squares, onsets = np.zeros((2, 2)), references.OnsetCounts()
    for batch in zip(originals, drawn, masks, strict=True):
        original, found, masked = (
            part.numpy() for part in (batch[0][:, :, 0], batch[1][:, :, 0], batch[2])
        )
        squares += [
            [part.sum() for part in references.sums_of_squares(patches, masked)]
            for patches in (original, found)
        ]
        for clip in zip(original, found, masked, strict=True):
            onsets += references.count_onsets(*clip, scale=scale)
    within, between = squares[1] / np.maximum(squares[0], 1e-12)
    variances = {"within_variance": float(within), "between_variance": float(between)}
    return {**variances, "onset_f": onsets.f}


def no_op_validator(model: nn.Module) -> dict[str, float]:
    """Return no figures: the validator of every process but the first."""
    return {}


def validation_batches(data: Cache, clips: np.ndarray, config: Config) -> list[Batch]:
    """Held-out clips in batches of at most 32, unaugmented, with fixed crops and masks."""
    unlike = replace(config, pretrain=replace(config.pretrain, reconstruction_target="augmented"))
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


def mean_of(parts: Iterable[Tensor]) -> float:
    """Mean over all elements of several tensors."""
    tensors = list(parts)
    total = sum(part.double().sum() for part in tensors)
    return float(total / sum(part.numel() for part in tensors))


@dataclass(frozen=True)
class TrainingStatistics:
    """Mean patch (1, M, T) of training, constant in time, and covariances, for references."""

    mean_patch: Tensor
    kriging: Kriging


def training_statistics(data: Cache, clips: np.ndarray, config: Config) -> TrainingStatistics:
    """Statistics of at most 256 training clips, evenly spread; the mean is over all frames."""
    width, means, sequences = config.model.patch_frames, [], []
    for index in evenly(clips, VALIDATION_CLIPS):
        # (T, M)
        log_mel = np.array(data.log_mel(int(index)), np.float32)[:, : config.spectrogram.n_mels]
        means.append(log_mel.mean(0))
        sequences.append(patch_bands(log_mel, width, silence=config.spectrogram.silence))
    mean_patch = torch.from_numpy(np.mean(means, axis=0))[None, :, None].expand(1, -1, width)
    return TrainingStatistics(mean_patch, Kriging.fit(sequences))


def patch_bands(log_mel: np.ndarray, width: int, *, silence: float) -> np.ndarray:
    """Band means (N, M) of the whole patches, at least one, of a log-mel (frames, M)."""
    whole = log_mel[: max(width, len(log_mel) // width * width)]
    # (N, 1, M, W)
    patches = spectrogram.cut(whole.T, length=width, tail="anchor", silence=silence)
    return predictors.band_means(patches[:, 0])


def masked_predictors(batches: list[Batch], statistics: TrainingStatistics) -> dict[str, float]:
    """Masked-patch MSE of the references; see :mod:`patchifier.train.references`.

    ``mean_patch_mse`` is that of the mean patch of training. ``band_means_mse`` is that of the band
    means of each masked patch itself: the least error of a prediction that is constant in time.
    """
    errors: dict[str, list[Tensor]] = {}
    for batch in batches:
        found = {"mean_patch": statistics.mean_patch, **guesses(batch, statistics)}
        for name, guess in found.items():
            error = (batch.patches - guess)[batch.mask].square()
            errors.setdefault(f"{name}_mse", []).append(error)
    return {name: mean_of(parts) for name, parts in errors.items()}


def guesses(batch: Batch, statistics: TrainingStatistics) -> dict[str, Tensor]:
    """Predictions (B, N, 1, M, 1) of each reference from the visible patches, constant in time.

    A clip without a visible patch is predicted by the training mean.
    """
    keep = visible(batch.mask, batch.valid).numpy()
    bands = predictors.band_means(batch.patches[:, :, 0].numpy())  # (B, N, M)
    found = {name: predict(bands, keep) for name, predict in predictors.UNTRAINED.items()}
    found |= {"kriging": statistics.kriging.predict(bands, keep)}
    mean = statistics.mean_patch[0, :, 0].numpy()
    seen = keep.sum(1)[:, None, None] > 0
    found = {name: np.where(seen, values, mean) for name, values in found.items()} | {
        "band_means": bands
    }
    return {name: torch.from_numpy(values)[:, :, None, :, None] for name, values in found.items()}


def health(embeddings: Tensor) -> dict[str, float]:
    """Signs of collapse in embeddings (n, D).

    Mean standard deviation over clips, and the effective rank: the exponential of the entropy of
    the normalised singular values (Roy and Vetterli 2007), between 1 (collapsed) and min(n, D).
    """
    centred = (embeddings - embeddings.mean(0)).double()
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {
        "embedding_std": float(centred.square().mean(0).sqrt().mean()),
        "effective_rank": float(entropy.exp()),
    }

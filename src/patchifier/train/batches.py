"""Batches of pre-training: drawn on the CPU, resampled and augmented on the device."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchifier import augment
from patchifier.augment import AugmentParameters, Resampling
from patchifier.cache import Cache
from patchifier.config import AugmentConfig, Config, RequestError, TrainingConfig
from patchifier.datasets.splits import groups_of
from patchifier.io import listed
from patchifier.seeding import batch_indices, generator, random_masking

MOST_NAMED = 40  # clips of a batch that are listed
BLOCK = 100_000  # frames that are looked at together
EXAMPLES = 8  # batches: 6,400 patches at the paper's batch of 32


@dataclass  # not frozen: Fabric converts its tensors in place under mixed and double precision
class Batch:
    """The slice of one step's batch that belongs to this process.

    Attributes
    ----------
    patches, target : Tensor, shape (B, N, 1, M, T)
        Patches as the model sees them, and what it has to reconstruct.
    valid, mask, loss_mask : Tensor, shape (B, N), bool
        False for padding; True for patches to predict; True for patches in the loss.
    clips : Tensor, shape (B,), int64
        Indices in the cache.
    starts, scale, semitones : ndarray, shape (B,)
        First frame of each crop in stretched time, factor on the clip's duration, shift of pitch.
        Arrays, since Fabric would round tensors to the precision of the model.
    groups : Tensor, shape (B,), int64, or None
        Group of each clip (:func:`group_numbers`), where the objective needs it.
    weight, visible_weight : float
        Factors of this process's loss over masked (or all) and over visible patches, so that the
        mean over processes is the mean over patches.
    """

    patches: Tensor
    target: Tensor
    valid: Tensor
    mask: Tensor
    loss_mask: Tensor
    clips: Tensor
    starts: np.ndarray
    scale: np.ndarray
    semitones: np.ndarray
    groups: Tensor | None = None
    weight: float = 1.0
    visible_weight: float = 1.0


Tensors = TypeVar("Tensors", Batch, Resampling)


def to_device(values: Tensors, device: torch.device) -> Tensors:
    """Copy the tensors of a dataclass to a device."""
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars(values).items() if isinstance(value, Tensor)
    }
    return dataclasses.replace(values, **moved)


class Batches:
    """Map a step to this process's slice of its batch, a pure function of the seed and the step.

    Each of `parts`, clips of the cache, fills its own indices of every batch, so a process that
    takes only those indices never reads the other parts. `rank_slice` has the indices of this
    process.
    """

    def __init__(
        self,
        data: Cache,
        parts: Sequence[np.ndarray],
        config: Config,
        stage: str,
        training: TrainingConfig,
        *,
        device: torch.device | None = None,
        rank_slice: slice | None = None,
    ) -> None:
        self.data, self.parts, self.config = data, parts, config
        self.stage, self.training, settings = stage, training, config.pretrain
        self.seed = settings.seed * 2 + (stage == "two")  # the stages draw apart
        self.pairs = stage == "two" and settings.pairs
        paired = parts if self.pairs else []
        self.partners = [Partners(part, group_numbers(data, part)) for part in paired]
        self.layout: Any = getattr(settings, f"stage_{stage}_patches")
        self.device = device or torch.device("cpu")
        self.rank_slice = rank_slice or slice(0, training.batch_size)

    def __call__(self, step: int) -> Batch:
        """Draw clips, augmentation and mask of a step; the batch is on the device."""
        settings = self.config.pretrain
        return make_batch(
            self.data,
            self.clips(step),
            self.config,
            draws=generator(self.seed, "augment", step),
            masks=generator(self.seed, "mask", step),
            augmentation=self.config.augment,
            layout=self.layout,
            loss_on="all" if self.stage == "one" else settings.loss_patches,
            loss_share=1.0 if self.stage == "one" else settings.loss_share,
            losses=generator(self.seed, "loss", step),
            rank_slice=self.rank_slice,
            pairs=self.pairs,
            device=self.device,
        )

    def clips(self, step: int) -> np.ndarray:
        """Clips of a step in all processes, (B,), by their rows in the cache."""
        each = self.training.batch_size // len(self.parts) // (2 if self.pairs else 1)
        chosen = [
            part[batch_indices(self.seed, step, clips=len(part), batch=each, part=number)]
            for number, part in enumerate(self.parts)
        ]
        if self.pairs:
            draws = generator(self.seed, "pairs", step)
            chosen = [
                np.stack([some, partners.draw(some, draws)], axis=1).ravel()
                for some, partners in zip(chosen, self.partners, strict=True)
            ]
        return np.concatenate(chosen)

    def describe(self, step: int) -> str:
        """Name the clips of a step, and those of them and of the examples that are not finite."""
        examples = [clip for other in range(EXAMPLES) for clip in self.clips(other)]
        return describe_batch(self.data, self.clips(step), before=examples)

    def examples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield targets (B, N, 1, M, T) and valid (B, N) of the first batches."""
        for step in range(EXAMPLES):
            batch = self(step)
            yield batch.target, batch.valid


def group_numbers(data: Cache, clips: np.ndarray) -> np.ndarray:
    """Hash of each clip's group, int64; a clip without a group is a group of its own."""
    names = groups_of([data.clips[clip] for clip in clips])
    hashes = (hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.array([int.from_bytes(each, "big", signed=True) for each in hashes], np.int64)


def require_groups(data: Cache, train: np.ndarray) -> None:
    """Refuse training clips that are all of one group, which InfoNCE between groups cannot use."""
    if len(np.unique(group_numbers(data, train))) < 2:
        raise RequestError(
            "pretrain.contrast_positives is 'group', but all clips that train are of one group "
            "(another may be held out): name groups in a manifest, sort files into more folders, "
            "or hold out less with --pretrain.validation_fraction."
        )


class Partners:
    """Draws clips of the same group, from clips (n,) and their groups (n,)."""

    def __init__(self, part: np.ndarray, groups: np.ndarray) -> None:
        order = np.lexsort((part, groups))
        self.clips, self.groups = part[order], groups[order]  # group by group
        self.group_of = dict(zip(part.tolist(), groups.tolist(), strict=True))

    def draw(self, chosen: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Another clip of each one's group, or itself if it is the only one."""
        own = np.array([self.group_of[clip] for clip in chosen.tolist()])
        first, end = (np.searchsorted(self.groups, own, side=side) for side in ("left", "right"))
        drawn = first + (draws.random(len(chosen)) * np.maximum(end - first - 1, 1)).astype(int)
        passed = (self.clips[drawn] >= chosen) & (end - first > 1)  # over itself
        return self.clips[drawn + passed]


def make_batch(
    data: Cache,
    chosen: np.ndarray,
    config: Config,
    *,
    draws: np.random.Generator,
    masks: np.random.Generator,
    augmentation: AugmentConfig,
    layout: augment.Layout,
    loss_on: str = "masked",
    loss_share: float = 1.0,
    losses: np.random.Generator | None = None,
    rank_slice: slice | None = None,
    pairs: bool = False,
    device: torch.device | None = None,
) -> Batch:
    """Read clips (B,) by index, augment them, cut them into patches and draw masks.

    Draws are for the whole batch, so the draws of a clip do not depend on `rank_slice`, the clips
    to return. `loss_on` says which patches count in the loss, `loss_share` which fraction of them,
    drawn by `losses`. With `pairs`, consecutive pairs of clips share stretch and shift of pitch.
    Frames are resampled on `device`.
    """
    model, settings, rank_slice = config.model, config.pretrain, rank_slice or slice(0, len(chosen))
    drawn = augment.draw(
        draws,
        data.frames[chosen],
        config=augmentation,
        patches=settings.n_patches,
        width=model.patch_frames,
        layout=layout,
        most=model.max_patches,
        pairs=pairs,
    )
    mask = random_masking(masks, drawn.valid, settings.mask_ratio, ends=settings.visible_span_ratio)
    loss_mask = mask if loss_on == "masked" else drawn.valid
    if loss_share < 1 and losses is not None:
        loss_mask = random_masking(losses, loss_mask, loss_share)
    weight = _weight(loss_mask, rank_slice)
    visible_weight = _weight(drawn.valid & ~mask, rank_slice)
    own, drawn = chosen[rank_slice], drawn[rank_slice]
    batch = Batch(
        *_patches(data, own, drawn, config, augmentation, device or torch.device("cpu")),
        torch.from_numpy(drawn.valid),
        torch.from_numpy(mask[rank_slice]),
        torch.from_numpy(loss_mask[rank_slice]),
        torch.from_numpy(own),
        drawn.starts[:, 0],
        drawn.scale,
        np.zeros(len(own)) if drawn.pitch is None else drawn.pitch,
        torch.from_numpy(group_numbers(data, own)) if settings.pairs else None,
        weight,
        visible_weight,
    )
    return batch if device is None else to_device(batch, device)


def _weight(counted: np.ndarray, rank_slice: slice) -> float:
    """Number of patches in a slice of the batch, relative to an equal part of all patches."""
    own = counted[rank_slice]
    return float(own.sum() * len(counted) / (len(own) * max(1, counted.sum())))


def _patches(
    data: Cache,
    clips: np.ndarray,
    drawn: AugmentParameters,
    config: Config,
    augmentation: AugmentConfig,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Patches as the model sees them and targets, (B, N, 1, M, T) each, on a device."""
    frames, width = data.frames[clips], config.model.patch_frames
    silence = config.spectrogram.silence
    spans = augment.source_span(drawn, frames, width)
    log_mels = torch.from_numpy(data.read(clips, spans))  # (B, frames, M)
    first = np.arange(len(clips)) * log_mels.shape[1] - spans[:, 0]
    crops = Resampling.of(drawn, first=first, frames=frames, width=width, config=config.spectrogram)
    crops, table = to_device(crops, device), log_mels.flatten(0, 1).to(device)
    clean = augment.resample(crops, table, silence=silence, width=width)
    levelled = augment.change_levels(clean, crops, config=config.spectrogram)
    augmented = augment.vary_intensity(levelled, crops, config=augmentation, silence=silence)
    return augmented, augmented if config.pretrain.reconstruction_target == "augmented" else clean


# --- what a step that failed was trained on, in words ---


def describe_batch(
    data: Cache, rows: Sequence[int] | np.ndarray, *, before: Iterable[int] = ()
) -> str:
    """Name the clips of a batch, and those whose log-mels are not finite, with a remedy.

    `rows` are indices in the cache; `before` are clips of other batches on which the step depends.
    """
    rows = list(dict.fromkeys(int(row) for row in rows))
    named = listed([_named(data, row) for row in rows], MOST_NAMED)
    words = f"Clips of this step, with their rows in {data.path}: {named}."
    bad = [
        row
        for row in dict.fromkeys([*rows, *(int(row) for row in before)])
        if not is_finite(data, row)
    ]
    if not bad:
        return f"{words} Their log-mels are finite."
    files = ", ".join(str(path.with_suffix(".*")) for path in data.shard_files(np.array(bad)))
    return (
        f"{words} Log-mels with values that are not finite: "
        f"{', '.join(_named(data, row) for row in bad)}: delete {files} and run 'patchifier "
        "prepare' again, or leave these clips out."
    )


def _named(data: Cache, row: int) -> str:
    return f"{data.clips[row].id} (row {row})"


def is_finite(data: Cache, row: int) -> bool:
    """Whether all values of a clip's log-mel are finite.

    True of one in a shard that this machine does not have.
    """
    try:
        starts = range(0, int(data.frames[row]), BLOCK)
        return all(
            bool(np.isfinite(data.log_mel(row, start, start + BLOCK)).all()) for start in starts
        )
    except RequestError:
        return True

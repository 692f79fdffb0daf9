"""Batches of pre-training: drawn on the processor, a few small numbers for each; looked up and augmented on the device."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchifier import augment
from patchifier.augment import Crops
from patchifier.cache import Cache
from patchifier.config import AugmentConfig, Config, RequestError, TrainingConfig
from patchifier.nn.model import draw_mask
from patchifier.seeding import batch_indices, generator
from patchifier.train.diagnosis import describe_batch

EXAMPLES = 8  # batches: 6,400 patches at the paper's batch of 32


@dataclass(frozen=True)
class Batch:
    """Patches as the model sees them, what to reconstruct, two masks, and whose they are; (B, N, 1, M, W) and (B, N)."""

    patches: Tensor
    target: Tensor
    present: Tensor
    masked: Tensor
    clips: Tensor  # (B,), their numbers in the cache
    groups: Tensor | None = None  # (B,), what they belong to, where that is asked


@dataclass(frozen=True)
class Plan(Crops):
    """A batch before its patches are looked up: where they lie, and what is asked of them.

    Attributes
    ----------
    masked : Tensor, shape (B, N), bool
    clips : Tensor, shape (B,), int64
        Their numbers in the cache.
    groups : Tensor, shape (B,), int64, or None
        What they belong to, where that is asked (:func:`group_numbers`).
    visible, hidden : Tensor, shape (V,) and (H,), int64
        Places of visible and of masked patches among all B * N, so that nobody needs to count them on the device.
    weight, visible_weight : Tensor, scalar
        By which this process's loss, on patches that count and on visible ones, is multiplied, so that the mean over processes is the mean
        over patches.
    table : Tensor, shape (F, M)
        Frames to look up.
    """

    masked: Tensor
    clips: Tensor
    groups: Tensor | None
    visible: Tensor
    hidden: Tensor
    weight: Tensor
    visible_weight: Tensor
    table: Tensor

    def to(self, device: torch.device) -> "Plan":
        """Return the plan with its tensors on a device."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(
            self, **{name: value.to(device) for name, value in tensors.items()}
        )


class Batches:
    """Step -> this process's share of the batch, a pure function of the seed and the step.

    Parameters
    ----------
    data : Cache
        Log-mels.
    parts : sequence of ndarray of int
        Training clips; each part fills its own places in every batch, so that a process that takes only those places never reads the
        other parts.
    config : Config
    stage : "one" or "two"
    training : TrainingConfig
        Of the stage.
    device : torch.device
        Where the model is.
    share : slice
        Places of the batch that are this process's.
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
        share: slice | None = None,
    ) -> None:
        self.data, self.parts, self.config, self.stage, self.training = (
            data,
            parts,
            config,
            stage,
            training,
        )
        settings = config.pretrain
        self.seed = settings.seed * 2 + (stage == "two")  # the stages draw apart
        self.pairs = stage == "two" and settings.pairs
        self.partners = (
            [Partners(part, group_numbers(data, part)) for part in parts] if self.pairs else []
        )
        self.layout: Any = (
            settings.stage_one_patches if stage == "one" else settings.stage_two_patches
        )
        self.device, self.share = device or torch.device("cpu"), share or slice(0, training.batch)

    def __call__(self, step: int) -> Plan:
        """Return the plan of a step, on the device."""
        return self.plan(step).to(self.device)

    def clips(self, step: int) -> np.ndarray:
        """Clips of a step in all processes, (B,), by their rows in the cache."""
        each = self.training.batch // len(self.parts) // (2 if self.pairs else 1)
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
        """Name the clips of a step, and those among them, or among the examples, whose log-mels are not finite."""
        examples = [clip for other in range(EXAMPLES) for clip in self.clips(other)]
        return describe_batch(self.data, self.clips(step), before=examples)

    def plan(self, step: int) -> Plan:
        """Draw clips, augmentation and mask of a step."""
        return make_plan(
            self.data,
            self.clips(step),
            self.config,
            draws=generator(self.seed, "augment", step),
            masks=generator(self.seed, "mask", step),
            augmentation=self.config.augment,
            layout=self.layout,
            counts="present" if self.stage == "one" else self.config.pretrain.loss_on,
            share=self.share,
            pairs=self.pairs,
        )

    def examples(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What is to be reconstructed in this process's share of the first batches, and where there are patches: targets are standardised by it."""
        for step in range(EXAMPLES):
            plan = self(step)
            yield self.look_up(plan)[1], plan.present

    def look_up(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Patches as the model sees them, and what to reconstruct; (B, N, 1, M, W)."""
        return look_up(plan, self.config, self.config.augment)


def group_numbers(data: Cache, clips: np.ndarray) -> np.ndarray:
    """A number for the group of each clip, by a hash of its name; a clip without one is a group of its own. Shape of `clips`, int64."""
    names = (data.clips[clip].group or data.clips[clip].id for clip in clips)
    return np.array(
        [
            int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            for name in names
        ],
        np.int64,
    )


def require_groups(data: Cache, train: np.ndarray) -> None:
    """Refuse training clips that are all of one group, where groups are to be told apart.

    Raises
    ------
    RequestError
        Saying what can be done.
    """
    if len(np.unique(group_numbers(data, train))) < 2:
        raise RequestError(
            "pretrain.contrast_of is 'group', but all clips that train are of one group (another may be held out): "
            "name groups in a manifest, sort files into more folders, or hold out less with --pretrain.validation_fraction."
        )


class Partners:
    """Draws clips of the same group.

    Parameters
    ----------
    part : ndarray of int, shape (n,)
        Clips that may be drawn.
    groups : ndarray of int, shape (n,)
        The group of each.
    """

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


def make_plan(
    data: Cache,
    chosen: np.ndarray,
    config: Config,
    *,
    draws: np.random.Generator,
    masks: np.random.Generator,
    augmentation: AugmentConfig,
    layout: Any,
    counts: str = "masked",
    share: slice | None = None,
    pairs: bool = False,
) -> Plan:
    """Draw for a whole batch and plan a share of it; what is drawn for a clip does not depend on the share."""
    model, settings, share = config.model, config.pretrain, share or slice(0, len(chosen))
    shape = {
        "patches": settings.patches,
        "width": model.frames,
        "layout": layout,
        "most": model.positions,
        "pairs": pairs,
    }
    drawn = augment.draw(draws, data.frames[chosen], config=augmentation, **shape)
    masked = draw_mask(masks, drawn.present, settings.mask_ratio, ends=settings.mask_ends)
    weight = _weight(masked if counts == "masked" else drawn.present, share)
    visible_weight = _weight(drawn.present & ~masked, share)
    own, drawn, masked = chosen[share], drawn[share], masked[share]
    frames = data.frames[own]
    spans = augment.span(drawn, frames, model.frames)
    log_mels = data.read(own, spans)  # (B, T, M)
    first = np.arange(len(own)) * log_mels.shape[1] - spans[:, 0]
    crops = Crops.of(
        drawn, first=first, frames=frames, width=model.frames, config=config.spectrogram
    )
    flat, there = torch.from_numpy(masked).flatten(), torch.from_numpy(drawn.present).flatten()
    return Plan(
        **vars(crops),
        masked=torch.from_numpy(masked),
        clips=torch.from_numpy(own),
        groups=torch.from_numpy(group_numbers(data, own)) if settings.pairs else None,
        visible=(there & ~flat).nonzero()[:, 0],
        hidden=flat.nonzero()[:, 0],
        weight=torch.tensor(weight),
        visible_weight=torch.tensor(visible_weight),
        table=log_mels.flatten(0, 1),
    )


def _weight(counted: np.ndarray, share: slice) -> float:
    """Patches that count in a share of the batch, over those in an equal part of all."""
    own = counted[share]
    return float(own.sum() * len(counted) / (len(own) * max(1, counted.sum())))


def look_up(plan: Plan, config: Config, augmentation: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Patches as the model sees them, and what to reconstruct; (B, N, 1, M, W)."""
    silence = config.spectrogram.silence
    clean = augment.look_up(plan, plan.table, silence=silence, width=config.model.frames)
    augmented = augment.vary_intensity(clean, plan, config=augmentation, silence=silence)
    return augmented, augmented if config.pretrain.target == "augmented" else clean


def make_batch(
    data: Cache, chosen: np.ndarray, config: Config, *, augmentation: AugmentConfig, **options: Any
) -> Batch:
    """Read clips, augment them, cut them into patches and choose what to mask."""
    plan = make_plan(data, chosen, config, augmentation=augmentation, **options)
    patches, target = look_up(plan, config, augmentation)
    present = torch.ones_like(plan.masked) if plan.present is None else plan.present
    return Batch(patches, target, present, plan.masked, plan.clips, plan.groups)

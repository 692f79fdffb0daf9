"""Label files of rendered clips, and the losses of what predicts their notes (:mod:`.notes`)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets import Clip
from patchifier.datasets.splits import VALIDATION_CLIPS, evenly
from patchifier.nn.descriptors import DESCRIPTORS
from patchifier.nn.equivariant import LEAST_PROBABILITY, estimator_of
from patchifier.nn.masking import masked_select
from patchifier.train import distributed
from patchifier.train.batches import Batch
from patchifier.train.notes import NOTE_TARGETS, UNKNOWN, Crop, Score

EXAMPLE_LENGTH = 25  # patches of the crops from which base rates are counted


class NoteLabels:
    """Label files of the clips of a cache.

    Parameters
    ----------
    folder : str or Path
        With ``<clip id without suffix>.json``; clips without a file have no labels.
    clips : sequence of Clip
    frame_s : float
        Seconds between frames.
    patch_frames : int
        Frames of a patch.
    training : sequence of int
        Clips that train; base rates are those of at most 256 of them that have a file.

    Raises
    ------
    RequestError
        If no training clip has a file, or a file is damaged; the message names it.
    """

    def __init__(
        self,
        folder: str | Path,
        clips: Sequence[Clip],
        *,
        frame_s: float,
        patch_frames: int,
        training: Sequence[int],
    ) -> None:
        self.frame_s, self.patch_frames = frame_s, patch_frames
        self.scores = [
            read(Path(folder) / f"{Path(clip.id).with_suffix('')}.json") for clip in clips
        ]
        labelled = np.array([clip for clip in training if self.scores[clip]], int)
        self.examples = evenly(labelled, VALIDATION_CLIPS).tolist()
        if not self.examples:
            raise RequestError(
                f"pretrain.note_labels is {folder}, but no training clip has a file there: "
                f"expected, for example, {Path(folder) / Path(clips[0].id).with_suffix('.json')}."
            )

    def targets(
        self,
        name: str,
        clips: Sequence[int],
        *,
        starts: Sequence[float] | np.ndarray,
        scale: Sequence[float] | np.ndarray,
        semitones: Sequence[float] | np.ndarray,
        n_patches: int,
    ) -> Tensor:
        """Targets of crops: int64 (B, N, S), (B, N) or (B,); -1 where unknown."""
        target = NOTE_TARGETS[name]
        found = np.full((len(clips), *target.shape(n_patches)), UNKNOWN, np.int64)
        places = zip(clips, starts, scale, semitones, strict=True)
        for index, (clip, start, stretch, shift) in enumerate(places):
            score = self.scores[clip]
            crop = Crop(start, stretch, shift, n_patches, self.patch_frames, self.frame_s)
            values = None if score is None else target.values(score, crop)
            if values is not None:
                found[index] = values
        return torch.from_numpy(found)

    def labelled(self, clips: Sequence[int]) -> int:
        """Count the clips that have a label file."""
        return sum(self.scores[clip] is not None for clip in clips)

    @property
    def rendered(self) -> frozenset[int]:
        """Clips that have a label file."""
        return frozenset(clip for clip, score in enumerate(self.scores) if score is not None)

    def base_rates(self, name: str) -> Tensor:
        """Share of ones of each element (S,) of a multilabel target, over first patches."""
        clips = self.examples
        zeros = [0.0] * len(clips)
        found = self.targets(
            name,
            clips,
            starts=zeros,
            scale=[1.0] * len(clips),
            semitones=zeros,
            n_patches=EXAMPLE_LENGTH,
        ).flatten(0, -2)
        known = found[found[:, 0] != UNKNOWN].double()
        return (known.sum(0) + 1) / (len(known) + 2)  # never 0 or 1


def note_labels(data: Cache, parts: Sequence[np.ndarray], config: Config) -> NoteLabels | None:
    """Read the label files of a cache, or return None without `pretrain.note_labels`."""
    folder = config.pretrain.note_labels
    if not folder:
        return None
    return NoteLabels(
        folder,
        data.clips,
        frame_s=config.spectrogram.frame_s,
        patch_frames=config.model.patch_frames,
        training=np.concatenate(parts).tolist(),
    )


def read(path: Path) -> Score | None:
    """Read a label file, or return None if there is none.

    Raises
    ------
    RequestError
        If it is damaged.
    """
    try:
        return Score.of(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"{path}: {error}, expected the notes of a clip as JSON (see patchifier.train.notes)."
        ) from None


class NoteHeads(nn.Module):
    """Linear heads of targets from notes, and their losses.

    Parameters
    ----------
    targets : sequence of str
        Objectives; those of :data:`patchifier.train.notes.NOTE_TARGETS` get a head, or are
        predicted by an estimator of the model.
    labels : NoteLabels
    embed_dim : int
    """

    def __init__(self, targets: Sequence[str], labels: NoteLabels, embed_dim: int) -> None:
        super().__init__()
        self.labels = labels
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(embed_dim, NOTE_TARGETS[name].size)
                for name in targets
                if name in NOTE_TARGETS and not NOTE_TARGETS[name].estimator
            }
        )
        self.estimated = [
            name for name in targets if name in NOTE_TARGETS and NOTE_TARGETS[name].estimator
        ]
        for name in self.heads:
            self._begin_with_base_rates(name)

    def _begin_with_base_rates(self, name: str) -> None:
        """Let a head of several labels first predict base rates, and keep the loss of a guess."""
        target, guess = NOTE_TARGETS[name], torch.tensor(math.log(NOTE_TARGETS[name].size))
        if target.kind == "multilabel":
            rates = self.labels.base_rates(name)
            self.heads[name].bias.data = torch.logit(rates).float()
            entropy = -(rates * rates.log() + (1 - rates) * (1 - rates).log())
            guess = entropy.mean().float()
        self.register_buffer(f"{name}_guess", guess, persistent=False)

    def forward(
        self,
        batch: Batch,
        context: Tensor,
        prediction: Tensor,
        mean_context: Tensor,
        *,
        keep: Tensor,
    ) -> dict[str, Tensor]:
        """Cross entropy of each target, relative to that of base rates.

        Parameters
        ----------
        context, prediction : Tensor, shape (B, N, D)
            A target of patches is predicted from the context of visible ones and from the
            prediction of masked ones; both count the same.
        mean_context : Tensor, shape (B, D)
            A target of clips is predicted from it.
        keep : Tensor, shape (B, N), bool
            True for visible patches.
        """
        errors = {}
        for name in self.heads:
            target = self._targets(name, batch)
            if NOTE_TARGETS[name].of == "clip":
                errors[name] = self._cross_entropy(name, mean_context, target)
                continue
            seen, unseen = (
                self._cross_entropy(
                    name, masked_select(vectors, where), masked_select(target, where)
                )
                for vectors, where in ((context, keep), (prediction, batch.mask))
            )
            errors[name] = (seen + unseen) / 2
        return errors

    def estimator_losses(
        self, batch: Batch, estimators: nn.ModuleDict | None, config: Config
    ) -> dict[str, Tensor]:
        """Cross entropy of the model's estimators on clips whose value is known, over a guess."""
        errors = {}
        for name in self.estimated:
            estimator = estimator_of(estimators, NOTE_TARGETS[name].estimator or "")
            target = self._targets(name, batch)
            known = target != UNKNOWN
            used = known | ~known.any()  # descriptors need a clip
            patches = batch.target[used][:, :, 0].to(next(estimator.parameters()).dtype)
            with torch.autocast(patches.device.type, enabled=False):
                values = DESCRIPTORS[estimator.descriptor].values
                found = estimator(values(patches, batch.valid[used], config))[known[used]]
                chosen = found.gather(1, target[known, None])[:, 0]
                losses = -(chosen + LEAST_PROBABILITY).log() / math.log(estimator.bins)
            errors[name] = distributed.mean_of_rows(losses, alone=not self.training)
        return errors

    def _targets(self, name: str, batch: Batch) -> Tensor:
        """Targets of the batch's crops, on its device."""
        return self.labels.targets(
            name,
            batch.clips.tolist(),
            starts=batch.starts,
            scale=batch.scale,
            semitones=batch.semitones,
            n_patches=batch.mask.shape[1],
        ).to(batch.mask.device)

    def _cross_entropy(self, name: str, vectors: Tensor, target: Tensor) -> Tensor:
        """Mean over the rows whose target is known; 0 if there is none."""
        multilabel = NOTE_TARGETS[name].kind == "multilabel"
        known = (target[:, 0] if multilabel else target) != UNKNOWN
        logits, target = self.heads[name](vectors[known]).float(), target[known]
        with torch.autocast(logits.device.type, enabled=False):
            if multilabel:
                losses = functional.binary_cross_entropy_with_logits(
                    logits, target.float(), reduction="none"
                ).mean(1)
            else:
                losses = functional.cross_entropy(logits, target, reduction="none")
        guess = self.get_buffer(f"{name}_guess")
        return distributed.mean_of_rows(losses, alone=not self.training) / guess

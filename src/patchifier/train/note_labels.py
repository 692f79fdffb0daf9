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
    """Label files ``<clip id without suffix>.json`` in a folder, of the clips of a cache.

    Clips without a file have no labels. Base rates are those of at most 256 training clips that
    have one. A damaged file is refused, and a folder without one of any training clip.
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
        starts: np.ndarray,
        scale: np.ndarray,
        semitones: np.ndarray,
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
        zeros = np.zeros(len(self.examples))
        crops = {"starts": zeros, "scale": zeros + 1, "semitones": zeros}
        found = self.targets(name, self.examples, **crops, n_patches=EXAMPLE_LENGTH).flatten(0, -2)
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
    """Read a label file, or return None if there is none; one that is damaged is refused."""
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

    Targets of :data:`patchifier.train.notes.NOTE_TARGETS` get a head, or are predicted by an
    estimator of the model.
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
            target, guess = NOTE_TARGETS[name], torch.tensor(math.log(NOTE_TARGETS[name].size))
            if target.kind == "multilabel":  # begins with base rates
                rates = labels.base_rates(name)
                self.heads[name].bias.data = torch.logit(rates).float()
                entropy = -(rates * rates.log() + (1 - rates) * (1 - rates).log())
                guess = entropy.mean().float()
            self.register_buffer(f"{name}_guess", guess, persistent=False)  # loss of a guess

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

        A target of patches is predicted from the context (B, N, D) of visible ones and from the
        prediction (B, N, D) of masked ones; both count the same. A target of clips is predicted
        from the mean context (B, D). `keep` (B, N) is True for visible patches.
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
        crops = {"starts": batch.starts, "scale": batch.scale, "semitones": batch.semitones}
        clips, n_patches = batch.clips.tolist(), batch.mask.shape[1]
        return self.labels.targets(name, clips, **crops, n_patches=n_patches).to(batch.mask.device)

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

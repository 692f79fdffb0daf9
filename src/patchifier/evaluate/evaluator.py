"""One protocol on one task: features, predictions of probes, scores, paired differences."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import statistics, tasks
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.evaluate import frames, probes
from patchifier.evaluate.encoders import Encoder, cached, note_of
from patchifier.io import ProgressOf, Steps, plain_stem, write_rows
from patchifier.tasks import Task
from patchifier.train.sameness import equal_predictions
from patchifier.train.tuning import prediction_rows

Results = dict[str, Any]
TIMED_CLIPS = 8  # clips on which the cost of an encoder is measured, whatever is stored
SHOTS = (1, 2, 5, 10)
PLAIN: Results = {"subset": "", "condition": "", "seconds_per_second": None}


@dataclass(frozen=True)
class Evaluator:
    """Evaluates encoders by one protocol on one task.

    Parameters
    ----------
    data : Cache
        Clips with targets.
    task : Task
        The task of the clips.
    protocol : str
        One of :data:`patchifier.evaluate.probes.PROTOCOLS`, or "few-shot".
    splits : sequence of Splits
        One for each test fold.
    seed : int
        Seed of the probe.
    perturbed : mapping of str to Cache
        The tested clips under each perturbation, in the order of `tested`.
    folder : Path
        Gets stored features and the predictions of each encoder.
    progress : callable
        Given a title, returns a function that shows progress.
    written : set of Path
        The files of predictions that were written.
    """

    data: Cache
    task: Task
    protocol: str
    splits: Sequence[Splits]
    seed: int
    perturbed: Mapping[str, Cache]
    folder: Path
    progress: ProgressOf
    written: set[Path] = field(default_factory=set)

    @functools.cached_property
    def tested(self) -> np.ndarray:
        """Indices of all tested clips, fold by fold: (n_test,)."""
        return np.concatenate([split.test for split in self.splits])

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """Groups of the tested clips: (n_test,)."""
        return self.splits[0].groups[self.tested]

    def results(self, encoders: Sequence[Encoder]) -> Results:
        """Return rows of every encoder and the differences between the first and each other one."""
        by_name: dict[str, list[Encoder]] = {}
        for encoder in encoders:
            by_name.setdefault(encoder.name, []).append(encoder)
        if self.task.kind == "per-frame":
            return self.frame_wise(by_name)
        if self.protocol == "few-shot":
            return self.few_shot(by_name)
        return self.whole_clips(by_name)

    # --- clips ---

    def whole_clips(self, by_name: Mapping[str, Sequence[Encoder]]) -> Results:
        """Train the probe for each encoder and fold; test it on clean and perturbed clips."""
        targets = tasks.encode_targets(self.task, [clip.target for clip in self.data.clips])
        runs = [{"": self.majority(targets)}]
        more: Results = {"seconds_per_second": None, "parameters": 0, "chosen": []}
        rows = self.rows("majority", targets, runs, more, self.steps("majority", 0))
        clean: dict[str, statistics.Statistic] = {}
        predicted: dict[str, list[np.ndarray]] = {}
        for name, repeated in by_name.items():
            steps = self.steps(name, len(repeated))
            found = [self.predict(encoder, targets, steps) for encoder in repeated]
            runs = [predictions for predictions, _ in found]
            more = self.cost(repeated[0]) | {"note": note_of(repeated)}
            more |= {"chosen": [chosen for _, chosen in found]}
            rows += self.rows(name, targets, runs, more, steps)
            unperturbed = predicted[name] = [predictions[""] for predictions in runs]
            clean[name] = tasks.mean_score(self.task, targets[self.tested], unperturbed)
            self.write_predictions(name, unperturbed)
        note = tasks.undefined_note(self.task, targets[self.tested])
        differences = self.differences(self.task.metric, clean, predicted)
        return {"rows": rows, "differences": differences, "notes": [note] if note else []}

    def steps(self, name: str, repeats: int) -> Steps:
        """Progress of one encoder: features and folds of each repeated run, then the intervals."""
        each = 1 + len(self.perturbed) + len(self.splits)
        return Steps(self.progress(name), repeats * each + 1)

    def rows(
        self,
        name: str,
        targets: np.ndarray,
        runs: Sequence[Mapping[str, np.ndarray]],
        more: Mapping[str, Any],
        steps: Steps,
    ) -> list[Results]:
        """Rows of one encoder: all tested clips, each subset, and all under each perturbation.

        `runs` holds, for each repeated run, the predictions (n_test, C) by condition; "" is
        unperturbed. `more` holds further columns. The last of the `steps` is this one.
        """
        everything = np.arange(len(self.tested))
        subsets = [set(self.data.clips[index].subsets) for index in self.tested]
        parts = [("", "", everything)]
        for subset in sorted(set().union(*subsets)):
            parts.append(("", subset, np.flatnonzero([subset in each for each in subsets])))
        parts += [(condition, "", everything) for condition in runs[0] if condition]
        method = "none" if name == "majority" else self.protocol
        shown = steps.next("intervals", "draws")
        rows, note = [], ""
        for condition, subset, indices in parts:
            predictions = [run[condition][indices] for run in runs]
            truth = targets[self.tested[indices]]
            score = statistics.estimate(
                self.task.metric,
                self.groups[indices].tolist(),
                tasks.mean_score(self.task, truth, predictions),
                progress=shown,
            )
            note = note or str(score)  # the first is of all clips, unperturbed
            row = score.row(name, method) | {"subset": subset, "condition": condition}
            rows.append(row | dict(more) | self.other_metrics(truth, predictions))
        steps.finish(note)
        return rows

    def other_metrics(
        self, truth: np.ndarray, predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Metrics besides the main one, mean over repeated runs."""
        runs = [tasks.scores(self.task, truth, each) for each in predictions]
        names = [name for name in runs[0] if name != self.task.metric]
        return {f"also_{name}": float(np.mean([run[name] for run in runs])) for name in names}

    def predict(
        self, encoder: Encoder, targets: np.ndarray, steps: Steps
    ) -> tuple[dict[str, np.ndarray], list[Results]]:
        """Predictions of all tested clips by condition, and the setting chosen in each fold."""
        clean, perturbed = self.features(encoder, steps)
        # Perturbed clips are further rows behind the clean ones, which the same probe predicts.
        table = np.concatenate([clean, *perturbed.values()])
        rows = np.concatenate([np.arange(len(clean)), *[self.tested] * len(perturbed)])
        groups = self.splits[0].groups[rows]
        predictions: dict[str, list[np.ndarray]] = {condition: [] for condition in ("", *perturbed)}
        chosen, done = [], 0
        for number, split in enumerate(self.splits, 1):
            first, count = len(clean) + done, len(split.test)
            starts = [first + index * len(self.tested) for index in range(len(perturbed))]
            test = [split.test, *(np.arange(start, start + count) for start in starts)]
            extended = Splits(split.train, split.valid, np.concatenate(test), groups)
            found = probes.probe(
                self.protocol,
                self.task,
                table,
                targets[rows],
                extended,
                seed=self.seed,
                progress=steps.next(f"probe of fold {number}", "settings"),
            )
            for each, part in zip(
                predictions.values(), np.split(found.predictions, len(test)), strict=True
            ):
                each.append(part)
            chosen.append(found.chosen)
            done += count
        return {name: np.concatenate(parts) for name, parts in predictions.items()}, chosen

    def features(self, encoder: Encoder, steps: Steps) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Features of all clips, and of those tested under perturbations; stored ones are read."""
        caches = {"": self.data} | ({} if encoder.precomputed else dict(self.perturbed))
        folder, found = self.folder / "features", {}
        wanted = [self.data.clips[index].id for index in self.tested]
        for name, data in caches.items():
            if name and [clip.id for clip in data.clips] != wanted:
                raise RequestError(
                    f"{name}: {len(data.clips)} perturbed clips for {len(wanted)} tested ones; "
                    f"{data.path / 'skipped.csv'} names those that could not be read."
                )
            shown = steps.next(f"features {name}".strip(), "clips")
            clips = range(len(data.clips))
            found[name] = cached(encoder, data, clips, folder, progress=shown)
        return found.pop(""), found

    def majority(self, targets: np.ndarray) -> np.ndarray:
        """Predict class proportions or means of each fold's training clips: (n_test, C)."""
        parts = []
        for split in self.splits:
            known = targets[np.concatenate([split.train, split.valid])]
            parts.append(probes.majority(self.task, known, len(split.test)))
        return np.concatenate(parts)

    def cost(self, encoder: Encoder) -> Results:
        """Measure the seconds that an encoder needs for a second of audio, on a few clips.

        Count its parameters.
        """
        indices = list(range(len(self.data.clips)))[:TIMED_CLIPS]
        audio_s = float(self.data.frames[indices].sum()) * self.data.spectrogram.frame_s
        encoder.encode(self.data, indices[:1])  # imports and tables are not its cost
        started = time.perf_counter()
        encoder.encode(self.data, indices)
        return {
            "seconds_per_second": (time.perf_counter() - started) / audio_s,
            "parameters": encoder.parameters,
        }

    def differences(
        self,
        metric: str,
        by_name: Mapping[str, statistics.Statistic],
        predicted: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> list[Results]:
        """Compare the first encoder with each other one, paired by clip.

        P values are corrected for their number. `predicted` holds the predictions of each encoder,
        where they are known.
        """
        first, *others = by_name.items()
        pairs, shown = [(first, other) for other in others], self.progress("paired differences")
        rows = statistics.paired_rows(metric, self.groups.tolist(), pairs, progress=shown)
        for row in rows:
            row["equal_predictions"] = predicted is not None and equal_predictions(
                predicted[row["first"]], predicted[row["second"]]
            )
        return rows

    def write_predictions(self, name: str, runs: Sequence[np.ndarray]) -> None:
        """Write the predictions of the tested clips, averaged over repeated runs."""
        clips = [self.data.clips[index] for index in self.tested]
        rows = prediction_rows(self.task, clips, np.mean(runs, axis=0))
        path = self.folder / "predictions" / f"{plain_stem(name)}.csv"
        write_rows(path, rows)
        self.written.add(path)

    # --- few examples ---

    def few_shot(self, by_name: Mapping[str, Sequence[Encoder]]) -> Results:
        """Train on few examples of each class, drawn many times; the interval is over the draws."""
        self.refuse_perturbed()
        targets = tasks.encode_targets(self.task, [clip.target for clip in self.data.clips])
        rows, shots, notes = [], list(SHOTS), []
        if targets.ndim == 1:  # else the probe refuses the task
            rows.append(self.majority_row(targets))
            classes = len(self.task.names)
            counts = [np.bincount(targets[split.train], minlength=classes) for split in self.splits]
            fewest = int(np.min(counts))
            shots = [k for k in SHOTS if k <= fewest] or [1]  # 0: the probe names the class
            if len(shots) < len(SHOTS):
                notes = [
                    f"The rarest class has {fewest} training clips: more examples of each than "
                    "that cannot be drawn."
                ]
        for name, repeated in by_name.items():
            rows += self.few_shot_rows(name, repeated, targets, shots)
        return {"rows": rows, "differences": [], "notes": notes}

    def majority_row(self, targets: np.ndarray) -> Results:
        """Row of the most frequent class, which draws nothing."""
        value = tasks.main_score(self.task, targets[self.tested], self.majority(targets))
        score = statistics.Score(self.task.metric, value, value, value, len(self.tested))
        return score.row("majority", "none") | PLAIN | {"parameters": 0}

    def few_shot_rows(
        self, name: str, repeated: Sequence[Encoder], targets: np.ndarray, shots: Sequence[int]
    ) -> list[Results]:
        """Rows of one encoder, one for each number of examples."""
        steps, found = self.steps(name, len(repeated)), []
        probe = functools.partial(probes.few_shot, self.task, shots=shots, seed=self.seed)
        for encoder in repeated:
            clean, _ = self.features(encoder, steps)
            for number, split in enumerate(self.splits, 1):
                shown = steps.next(f"probe of fold {number}")
                found.append(probe(clean, targets, split, progress=shown))
        steps.finish()
        rows = []
        for same in zip(*found, strict=True):
            value, low, high = (
                float(np.mean([row[key] for row in same])) for key in ("value", "low", "high")
            )
            score = statistics.Score(self.task.metric, value, low, high, len(self.tested))
            row = score.row(name, f"few-shot, {same[0]['k']} a class") | PLAIN
            rows.append(row | {"note": note_of(repeated)} | self.cost(repeated[0]))
        return rows

    # --- frames ---

    def frame_wise(self, by_name: Mapping[str, Sequence[Encoder]]) -> Results:
        """Train one linear layer on vectors of frames.

        Log-mels with their context are always one of the encoders.
        """
        self.refuse_perturbed()
        without = [name for name, repeated in by_name.items() if repeated[0].embedder is None]
        if without:
            raise RequestError(
                f"{', '.join(without)} gives no vectors of frames, expected models of this "
                "package ('log-mel' is added by itself)."
            )
        features = {
            name: [frames.model_features(e.embedder, self.data) for e in repeated if e.embedder]
            for name, repeated in by_name.items()
        }
        features["log-mel"] = [frames.mel_features(self.data)]
        rows, by_encoder, metric = [], {}, ""
        for name, repeated in features.items():
            steps = Steps(self.progress(name), len(repeated) * len(self.splits) + 1)
            found = [self.probe_frames(each, steps) for each in repeated]
            metric = found[0][0].metric
            by_encoder[name] = statistic = frames.over_folds(found)
            size = by_name[name][0].parameters if name in by_name else 0
            more = PLAIN | {"parameters": size, "note": note_of(by_name.get(name, ()))}
            shown = steps.next("interval", "draws")
            score = statistics.estimate(metric, self.groups.tolist(), statistic, progress=shown)
            steps.finish()
            rows.append(score.row(name, "per-frame") | more | frames.other_scores(found))
        return {"rows": rows, "differences": self.differences(metric, by_encoder)}

    def probe_frames(self, features: frames.Features, steps: Steps) -> list[frames.FrameResult]:
        """Result of each fold."""
        probe = functools.partial(frames.probe_frames, self.task, self.data, features)
        return [
            probe(split, seed=self.seed, progress=steps.next(f"fold {number}"))
            for number, split in enumerate(self.splits, 1)
        ]

    def refuse_perturbed(self) -> None:
        """Refuse perturbations where the protocol does not test whole clips."""
        if self.perturbed:
            raise RequestError(
                f"perturbed clips are tested with the protocols {', '.join(probes.PROTOCOLS)} on "
                "tasks about whole clips alone."
            )

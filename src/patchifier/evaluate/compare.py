"""Encoders x task -> table: the same probe on the same clips, with intervals, paired differences and what each costs.

The first encoder is the one that the others are compared with; "random" and other encoders that come several times, with other
seeds, are one row. What is written is a run folder, from which the report draws table, figure and page.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import tasks, weights
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, digest
from patchifier.datasets.splits import Splits, cross_validation, folds_of
from patchifier.evaluate import frames, leaks, robustness
from patchifier.evaluate import probes as probe
from patchifier.evaluate.encoders import Encoder, cached
from patchifier.io import Progress, silent, write_json, write_rows
from patchifier.tasks import Task
from patchifier.train.run import Run

TIMED_CLIPS = 8  # of these the cost of an encoder is measured, apart from what was cached
SHOTS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Features:
    """Features of one encoder: of the clips, then of the tested clips under each deformation."""

    clean: np.ndarray
    deformed: Mapping[str, np.ndarray] = field(default_factory=dict)


def compare(
    cache: str | Path | Cache,
    encoders: Sequence[Encoder],
    out: str | Path,
    *,
    protocol: str = "linear",
    robust: bool = False,
    seed: int = 0,
    progress: Callable[[str], Progress] = lambda title: silent,
) -> dict[str, Any]:
    """Judge encoders on one task.

    Parameters
    ----------
    cache : str, Path or Cache
        Clips with targets.
    encoders : sequence of Encoder
        The first is compared with each other one. Those of one name are repeated runs of one encoder.
    out : str or Path
        Run folder; gets ``results.json``, ``table.csv``, ``differences.csv`` and the predictions of each encoder.
    protocol : str
        Of :data:`patchifier.evaluate.probes.PROTOCOLS`, or "few-shot".
    robust : bool
        Also ask the same probes about the tested clips under each of :data:`patchifier.evaluate.robustness.DEFORMATIONS`.
    seed : int
        Of the probe.
    progress : callable
        As for pre-training.

    Returns
    -------
    dict
        ``rows``, ``differences`` and ``notes``, as in ``results.json``.

    Raises
    ------
    RequestError
        If the clips have no targets, or the protocol does not fit the task.
    """
    data = cache if isinstance(cache, Cache) else Cache(cache)
    if data.task is None:
        raise RequestError(
            f"the clips of cache {data.path} have no targets: prepare it from a manifest with a target column."
        )
    rounds = splits_of(data)
    facts = {
        "kind": "compare", "cache": str(data.path), "dataset": data.name, "protocol": protocol, "seed": seed, "metric": data.task.metric,
        "task": {"kind": data.task.kind, "names": list(data.task.names)}, "split": describe(data), "encoders": list(dict.fromkeys(e.name for e in encoders)),
    }  # fmt: skip
    plain = data.spectrogram.without_pitch
    with Run(
        out,
        Config(spectrogram=plain, model=replace(Config().model, bands=plain.bands)),
        resume=True,
        facts=facts,
    ) as run:
        notes = leak_notes(encoders, data, run.path)
        deformed = deform_all(data, run.path / "deformed", progress) if robust else {}
        judge = Judge(data, data.task, protocol, rounds, seed, deformed, run.path, progress)
        found = judge.results(encoders)
        results = {
            **found,
            "notes": notes + found.get("notes", []),
            "dataset": data.name,
            "protocol": protocol,
            "split": facts["split"],
        }
        write_json(run.path / "results.json", results)
        columns = [
            key
            for key in dict.fromkeys(key for row in results["rows"] for key in row)
            if key != "chosen"
        ]
        write_rows(
            run.path / "table.csv",
            [{key: row.get(key, "") for key in columns} for row in results["rows"]],
        )
        if results["differences"]:
            write_rows(run.path / "differences.csv", results["differences"])
    return results


def splits_of(data: Cache) -> list[Splits]:
    """Splits of a cache, one for each test fold; an empty split is refused."""
    found = (Splits.of(data.clips, names) for names in cross_validation(data.clips))
    return [splits.require_clips(f"cache {data.path}") for splits in found]


def tested(data: Cache) -> np.ndarray:
    """Indices of all clips that are tested, round by round."""
    return np.concatenate([splits.test for splits in splits_of(data)])


def deform_all(data: Cache, folder: Path, progress: Callable[[str], Progress]) -> dict[str, Cache]:
    """Caches of the tested clips, in the order of :func:`tested`, under each deformation."""
    indices = tested(data)
    return {
        name: robustness.deform(data, indices, name, folder / name, progress=progress(name))
        for name in robustness.DEFORMATIONS
    }


def leak_notes(encoders: Sequence[Encoder], data: Cache, folder: Path) -> list[str]:
    """What has to be said of clips that encoders heard in pre-training and that are tested: named, or that nobody can tell."""
    asked = {data.clips[index].id for index in tested(data)}

    @functools.cache
    def said_of(heard: Path) -> str:  # once, however many seeds heard it
        try:
            found = tuple(leak for leak in leaks.leaks(Cache(heard), data) if leak.second in asked)
        except RequestError as error:
            return f"clips of {heard}, on which it was pre-trained, could not be looked for in this test: {error}"
        leaks.save(found, folder / f"leaks-{heard.name}.csv")
        if not found:
            return f"no clip of {heard} is heard in this test."
        named = ", ".join(sorted({leak.second for leak in found}))
        return f"clips of {heard}, on which it was pre-trained, are heard in this test: {named}."

    return [
        f"{encoder.name}: {_leaks_of(encoder.trained_on, data, said_of)}"
        for encoder in encoders
        if encoder.trained_on is not None
    ]


def _leaks_of(trained_on: Path, data: Cache, said_of: Callable[[Path], str]) -> str:
    if trained_on == weights.ROOT.resolve():
        return "comes without the music it was trained on, so leaks into the test could not be looked for; its card says what it heard."
    places = [
        trained_on / "run.json",
        trained_on / "pretrain" / "run.json",
    ]  # the demo lays its model beside the run
    facts: dict[str, Any] = next(
        (json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()), {}
    )
    heard = _music_of(facts)
    if heard is None:
        said = "what it was trained on is not at hand, so leaks into the test could not be looked for ('patchifier leaks')."
    elif heard.path.resolve() == data.path.resolve():
        said = "pre-trained, without labels, on clips of this very cache."
    else:
        said = said_of(heard.path)
    return (
        f"{said} Started from {facts['init']}: {_leaks_of(Path(facts['init']).parent, data, said_of)}"
        if "init" in facts
        else said
    )


def _music_of(facts: Mapping[str, Any]) -> Cache | None:
    """The cache that a run heard, if it is at hand and no other stands in its place."""
    try:
        found = Cache(facts["cache"], partial=True)
    except (KeyError, RequestError):
        return None
    return found if facts.get("music") in (None, digest(list(found.keys))) else None


def describe(data: Cache) -> str:
    """Say in words how clips are split."""
    if any(clip.split for clip in data.clips):
        return "the data set's own split"
    made = "" if folds_of(data.clips) else " (made here, by group)"
    return f"each of {len(cross_validation(data.clips))} folds{made} tested in turn"


@dataclass(frozen=True)
class Judge:
    """One protocol on one task."""

    data: Cache
    task: Task
    protocol: str
    rounds: Sequence[Splits]
    seed: int
    deformed: Mapping[str, Cache]
    folder: Path
    progress: Callable[[str], Progress]

    def results(self, encoders: Sequence[Encoder]) -> dict[str, Any]:
        """Rows of every encoder and, where clips are what is tested, how each differs from the first."""
        by_name: dict[str, list[Encoder]] = {}
        for encoder in encoders:
            by_name.setdefault(encoder.name, []).append(encoder)
        if self.task.kind == "per-frame":
            return self.per_frame(by_name)
        if self.protocol == "few-shot":
            return self.few_shot(by_name)
        return self.whole_clips(by_name)

    # --- clips ---

    def whole_clips(self, by_name: Mapping[str, Sequence[Encoder]]) -> dict[str, Any]:
        """Train the probe once for each encoder and round, and test it on clean and deformed clips."""
        targets = tasks.encode_targets(self.task, [clip.target for clip in self.data.clips])
        test = np.concatenate([sides.test for sides in self.rounds])
        rows = self.rows(
            "majority",
            test,
            targets,
            [self.majority(targets)],
            {"seconds_per_second": None, "parameters": 0, "chosen": []},
        )
        measures: dict[str, Callable[[np.ndarray], float]] = {}
        for name, repeated in by_name.items():
            found = [self.predict(encoder, targets) for encoder in repeated]
            repeats = [predictions for predictions, _ in found]
            rows += self.rows(
                name,
                test,
                targets,
                repeats,
                self.cost(repeated[0]) | {"chosen": [chosen for _, chosen in found]},
            )
            measures[name] = tasks.mean_score(
                self.task, targets[test], [repeat[""] for repeat in repeats]
            )
            self.write_predictions(name, test, [repeat[""] for repeat in repeats])
        return {
            "rows": rows,
            "differences": self.differences(
                self.task.metric, measures, self.rounds[0].groups[test].tolist()
            ),
        }

    def rows(
        self,
        name: str,
        test: np.ndarray,
        targets: np.ndarray,
        repeats: Sequence[Mapping[str, np.ndarray]],
        cost: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Rows of one encoder: all tested clips, each named part of them, and all of them under each deformation."""
        named = sorted({part for index in test for part in self.data.clips[index].subsets})
        parts = {
            part: np.array(
                [
                    place
                    for place, index in enumerate(test)
                    if part in self.data.clips[index].subsets
                ]
            )
            for part in named
        }
        asked = [
            ("", "", np.arange(len(test))),
            *[("", part, where) for part, where in parts.items()],
        ]
        asked += [(condition, "", np.arange(len(test))) for condition in repeats[0] if condition]
        rows = []
        for condition, part, where in asked:
            values, truth = [repeat[condition][where] for repeat in repeats], targets[test[where]]
            score = tasks.evaluate(
                self.task, truth, values, self.rounds[0].groups[test[where]].tolist()
            )
            every = [tasks.scores(self.task, truth, each) for each in values]
            also = {
                f"also_{key}": float(np.mean([scores[key] for scores in every]))
                for key in every[0]
                if key != self.task.metric
            }
            rows.append(
                score.row(name, "none" if name == "majority" else self.protocol)
                | {"subset": part, "condition": condition, **cost, **also}
            )
        return rows

    def predict(
        self, encoder: Encoder, targets: np.ndarray
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Predictions of all tested clips, clean ("") and under each deformation, and the settings chosen in each round."""
        features = self.features(encoder)
        table = np.concatenate(
            [features.clean, *features.deformed.values()]
        )  # deformed clips are further rows, for which the same probe is asked
        test = np.concatenate([sides.test for sides in self.rounds])
        values, labels = (
            targets,
            np.concatenate(
                [self.rounds[0].groups, *[self.rounds[0].groups[test]] * len(features.deformed)]
            ),
        )
        targets = np.concatenate([values, *[values[test]] * len(features.deformed)])
        collected: dict[str, list[np.ndarray]] = {
            condition: [] for condition in ("", *features.deformed)
        }
        chosen: list[dict[str, Any]] = []
        done = 0
        for sides in self.rounds:
            starts = [
                len(features.clean) + number * len(test) + done
                for number in range(len(features.deformed))
            ]
            asked = [sides.test, *[np.arange(start, start + len(sides.test)) for start in starts]]
            extended = Splits(sides.train, sides.valid, np.concatenate(asked), labels)
            probed = probe.probe(self.protocol, self.task, table, targets, extended, seed=self.seed)
            for condition, part in zip(
                collected, np.split(probed.predictions, len(asked)), strict=True
            ):
                collected[condition].append(part)
            chosen.append(probed.chosen)
            done += len(sides.test)
        return {condition: np.concatenate(parts) for condition, parts in collected.items()}, chosen

    def features(self, encoder: Encoder) -> Features:
        """Features of all clips and of the deformed ones, from the folder of features where they are known already."""
        shown = self.progress(encoder.name)
        shown(0, 1 + len(self.deformed), "features")
        clean = cached(encoder, self.data, range(len(self.data.clips)), self.folder / "features")
        deformed = {}
        for number, (name, data) in enumerate(
            () if encoder.precomputed else self.deformed.items(), 1
        ):
            shown(number, 1 + len(self.deformed), name)
            deformed[name] = cached(
                encoder,
                self.same_clips(data, name),
                range(len(data.clips)),
                self.folder / "features",
            )
        shown(1 + len(self.deformed), 1 + len(self.deformed), "")
        return Features(clean, deformed)

    def same_clips(self, data: Cache, name: str) -> Cache:
        """Refuse deformed clips that are not the tested ones, each in its place."""
        wanted = [self.data.clips[index].id for sides in self.rounds for index in sides.test]
        if [clip.id for clip in data.clips] != wanted:
            raise RequestError(
                f"{name}: {len(data.clips)} deformed clips for {len(wanted)} tested ones; {data.path / 'skipped.csv'} says which could not be read."
            )
        return data

    def majority(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Answer with the shares or means of the training side, whatever the clip."""
        guesses = [
            probe.majority(
                self.task, targets[np.concatenate([sides.train, sides.valid])], len(sides.test)
            )
            for sides in self.rounds
        ]
        return {"": np.concatenate(guesses)}

    def cost(self, encoder: Encoder) -> dict[str, Any]:
        """Measure the seconds that an encoder needs for a second of audio, on a few clips, and tell its parameters."""
        indices = list(range(min(TIMED_CLIPS, len(self.data.clips))))
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
        measures: Mapping[str, Callable[[np.ndarray], float]],
        groups: Sequence[str],
    ) -> list[dict[str, Any]]:
        """Compare the first encoder with each other one, paired by clip, p values corrected for their number."""
        first, *others = measures
        found = [
            tasks.paired(
                metric,
                groups,
                lambda chosen, other=other: measures[first](chosen) - measures[other](chosen),  # type: ignore[misc]
            )
            for other in others
        ]
        corrected = tasks.holm([score.p or 0.0 for score in found])
        return [
            {"first": first, "second": other} | asdict(score) | {"p_holm": p}
            for other, score, p in zip(others, found, corrected, strict=True)
        ]

    def write_predictions(self, name: str, test: np.ndarray, runs: Sequence[np.ndarray]) -> None:
        """Write the predictions of the tested clips, averaged over repeated runs."""
        rows = []
        for index, outputs in zip(test, np.mean(runs, axis=0), strict=True):
            clip = self.data.clips[index]
            named = {
                column: f"{value:.6g}"
                for column, value in zip(self.task.names, outputs, strict=True)
            }
            rows.append(
                {
                    "id": clip.id,
                    "group": clip.group or clip.id,
                    "target": clip.target if isinstance(clip.target, str) else str(clip.target),
                    **named,
                }
            )
        write_rows(
            self.folder / "predictions" / f"{''.join(c if c.isalnum() else '-' for c in name)}.csv",
            rows,
        )

    # --- few examples, and moments within clips ---

    def few_shot(self, by_name: Mapping[str, Sequence[Encoder]]) -> dict[str, Any]:
        """Few examples of each class, many draws of them: the interval is over the draws."""
        self.refuse_deformed()
        targets = tasks.encode_targets(self.task, [clip.target for clip in self.data.clips])
        fewest = (
            min(
                int(np.bincount(targets[sides.train], minlength=len(self.task.names)).min())
                for sides in self.rounds
            )
            if targets.ndim == 1
            else 0
        )
        shots = [k for k in SHOTS if k <= fewest or targets.ndim > 1] or [
            1
        ]  # refused by the name of the class that has none
        notes = (
            [
                f"The rarest class has {fewest} training clips: more examples of each than that cannot be drawn."
            ]
            if shots != list(SHOTS)
            else []
        )
        rows = []
        if targets.ndim == 1:  # it draws nothing
            test = np.concatenate([sides.test for sides in self.rounds])
            value = tasks.main_score(self.task, targets[test], self.majority(targets)[""])
            always = tasks.Score(self.task.metric, value, value, value, len(test)).row(
                "majority", "none"
            )
            rows.append(
                always
                | {"subset": "", "condition": "", "seconds_per_second": None, "parameters": 0}
            )
        for name, repeated in by_name.items():
            clean = [self.features(encoder).clean for encoder in repeated]
            found = [
                probe.few_shot(self.task, features, targets, sides, shots=shots, seed=self.seed)
                for features in clean
                for sides in self.rounds
            ]
            for same in zip(*found, strict=True):
                figures = {
                    key: float(np.mean([row[key] for row in same]))
                    for key in ("value", "low", "high")
                }
                row = {
                    "encoder": name,
                    "method": f"few-shot, {same[0]['k']} a class",
                    "metric": self.task.metric,
                    **figures,
                }
                rows.append(
                    row
                    | {
                        "n": sum(len(sides.test) for sides in self.rounds),
                        "subset": "",
                        "condition": "",
                    }
                    | self.cost(repeated[0])
                )
        return {"rows": rows, "differences": [], "notes": notes}

    def per_frame(self, by_name: Mapping[str, Sequence[Encoder]]) -> dict[str, Any]:
        """Moments within clips: one linear layer on vectors of frames; log-mels with their neighbours are always there to compare with."""
        self.refuse_deformed()
        without = [name for name, repeated in by_name.items() if repeated[0].embedder is None]
        if without:
            raise RequestError(
                f"{', '.join(without)} gives no vectors of moments within a clip, expected models of this package ('log-mel' comes by itself)."
            )
        features = {
            name: [frames.model_features(e.embedder, self.data) for e in repeated if e.embedder]
            for name, repeated in by_name.items()
        }
        features["log-mel"] = [frames.mel_features(self.data)]
        groups = (
            self.rounds[0].groups[np.concatenate([sides.test for sides in self.rounds])].tolist()
        )
        rows: list[dict[str, Any]] = []
        measures: dict[str, Callable[[np.ndarray], float]] = {}
        metric = ""
        for name, repeated in features.items():
            found = [
                [
                    frames.probe_frames(self.task, self.data, each, sides, seed=self.seed)
                    for sides in self.rounds
                ]
                for each in repeated
            ]
            metric = found[0][0].metric
            measures[name] = measure = _over_rounds(found)
            low, high = tasks.bootstrap(groups, measure)
            score = tasks.Score(metric, measure(np.arange(len(groups))), low, high, len(groups))
            every = {
                f"also_{key}": float(
                    np.mean([result.scores[key] for run in found for result in run])
                )
                for key in found[0][0].scores
                if key != metric
            }
            size = by_name[name][0].parameters if name in by_name else 0
            rows.append(
                score.row(name, "per-frame")
                | {"subset": "", "condition": "", "seconds_per_second": None, "parameters": size}
                | every
            )
        return {"rows": rows, "differences": self.differences(metric, measures, groups)}

    def refuse_deformed(self) -> None:
        """Refuse deformations where the protocol does not test whole clips."""
        if self.deformed:
            raise RequestError(
                f"deformed clips are tested with the protocols {', '.join(probe.PROTOCOLS)} on tasks about whole clips alone."
            )


def _over_rounds(found: Sequence[Sequence[frames.FrameResult]]) -> Callable[[np.ndarray], float]:
    """Figure of chosen clips of all rounds, mean over repeated runs."""
    values = [np.concatenate([result.per_clip for result in run]) for run in found]
    weights = [np.concatenate([result.weights for result in run]) for run in found]
    return lambda chosen: float(
        np.mean(
            [
                frames.weighted_mean(value[chosen], weight[chosen])
                for value, weight in zip(values, weights, strict=True)
            ]
        )
    )

"""Judge encoders on the open benchmark: the same probe on every task, one table, one figure, one endpoint fixed beforehand.

    python benchmarks/open/judge.py ROOT --encoders mel-stats,mfcc,runs/mine/model --out runs/open

Encoders are written as for 'patchifier compare'; the first is compared with each other one. NAME=ENCODER is a row by that name, and
NAME=ENCODER+ENCODER+... one row of several runs, their mean: seeds of a training. The validation side is for choosing; the test side is looked at once, at the
end: --side test. Log-mels are computed once and kept in ROOT/caches, features in ROOT/features.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measures import (
    DIAGNOSTICS,
    FAMILIES,
    FRAMES,
    QUESTIONS,
    Answered,
    Measure,
    Question,
    chance_of_hit,
    hits,
    mean_of,
    measure,
)  # fmt: skip
from outcome import Outcome, summarise, write_outcome

from patchifier import cache, datasets, tasks
from patchifier.cache import Cache
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate import frames, probes
from patchifier.evaluate.encoders import Encoder, cached, encoders
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.evaluate.probes.heads import moments

METADATA = "file metadata"
SPECTROGRAM = SpectrogramConfig(
    n_mels=64, n_pitch_bands=216
)  # models that hear mel bands alone are shown those alone


@dataclass(frozen=True)
class Judgement:
    """One side of the benchmark.

    Parameters
    ----------
    root : Path
        That build.py filled.
    side : "valid" or "test"
        Whose clips are asked. The probe learns from training clips, and chooses its strength on a tenth of their groups, or, where the test
        is asked, on validation clips.
    """

    root: Path
    side: str

    def load(self, question: Question) -> Dataset:
        """Clips of a task, without those of the side that nobody looks at."""
        path = self.root / "tasks" / f"{question.name}.jsonl"
        if not path.exists():
            raise RequestError(
                f"{path} is not there, expected the benchmark: run 'python benchmarks/open/build.py {self.root}'."
            )
        found = datasets.load(path)
        sides = ("train", "valid") if self.side == "valid" else ("train", "valid", "test")
        return replace(found, clips=tuple(clip for clip in found.clips if clip.split in sides))

    def cache(self, family: str, workers: int) -> Cache:
        """Log-mels of all clips of a family, each once, whatever is asked of it."""
        clips: dict[str, Clip] = {}
        for question in (*QUESTIONS, *DIAGNOSTICS):  # moments are asked of some of these clips
            if question.family == family:
                clips |= {clip.id: replace(clip, target=None) for clip in self.load(question).clips}
        out = self.root / "caches" / f"{family}-{self.side}"
        cache.prepare(
            Dataset(family, tuple(clips.values())), out, config=SPECTROGRAM, workers=workers
        )
        return Cache(out)

    def sides(self, dataset: Dataset) -> Splits:
        """Return the splits; on the validation side, its clips are the test and some training clips validate."""
        splits = Splits.of(dataset.clips, [clip.split for clip in dataset.clips])
        if self.side != "valid":
            return splits
        return with_validation(replace(splits, valid=splits.test[:0], test=splits.valid), 0)

    def asked(self, dataset: Dataset) -> list[Clip]:
        """Clips that are judged."""
        return [clip for clip in dataset.clips if clip.split == self.side]


@dataclass(frozen=True)
class Table:
    """Features of a family's clips by one encoder, one row of numbers for each clip's id."""

    rows: dict[str, np.ndarray]

    def of(self, clips: Sequence[Clip]) -> np.ndarray:
        """Features (n, E)."""
        return np.stack([self.rows[clip.id] for clip in clips])


def features(judgement: Judgement, encoder: Encoder, family: str, data: Cache) -> Table:
    """Features of every clip, from the folder of features where they are known already; those of training and validation serve both sides."""
    test = [index for index, clip in enumerate(data.clips) if clip.split == "test"]
    known = [index for index, clip in enumerate(data.clips) if clip.split != "test"]
    folder = judgement.root / "features" / family
    rows = [
        (data.clips[index].id, row)
        for part in (known, test)
        if part
        for index, row in zip(part, cached(encoder, data, part, folder), strict=True)
    ]
    return Table(dict(rows))


# --- clips ---


def ask(judgement: Judgement, question: Question, tables: Sequence[Table]) -> list[Answered]:
    """Answers of one encoder's runs to one question, one for each measure."""
    dataset = judgement.load(question)
    if question.task == "retrieval":
        return retrieve(judgement, question, dataset, tables)
    task = dataset.task
    assert task is not None
    truth = tasks.encode_targets(task, [clip.target for clip in dataset.clips])
    sides = judgement.sides(dataset)
    found = [
        probes.probe("linear", task, table.of(dataset.clips), truth, sides).predictions
        for table in tables
    ]
    known = np.concatenate([sides.train, sides.valid])
    nothing = probes.majority(task, truth[known], len(sides.test))
    groups = tuple(str(group) for group in sides.groups[sides.test])
    everyone = np.ones((1, len(groups)))
    return [
        Answered(
            question, name, groups, float(measure(name, task, truth[sides.test], nothing)(everyone)[0]),
            tuple(measure(name, task, truth[sides.test], predictions) for predictions in found),
        )
        for name in question.measures
    ]  # fmt: skip


def retrieve(
    judgement: Judgement, question: Question, dataset: Dataset, tables: Sequence[Table]
) -> list[Answered]:
    """Look for other clips of the same track among all judged clips: nothing is trained, features are standardised by training clips."""
    clips, train = (
        judgement.asked(dataset),
        [clip for clip in dataset.clips if clip.split == "train"],
    )
    tracks = tuple(str(clip.group) for clip in clips)
    standardised = []
    for table in tables:
        mean, scale = moments(table.of(train).astype(np.float64))
        standardised.append((table.of(clips) - mean) / scale)
    depths = {name: int(name.removeprefix("recall@")) for name in question.measures}
    return [
        Answered(
            question,
            name,
            tracks,
            chance_of_hit(tracks, depth),
            tuple(mean_of(hits(each, tracks, depth)) for each in standardised),
        )
        for name, depth in depths.items()
    ]


def metadata(clips: Sequence[Clip]) -> Table:
    """What a file says about itself: rate, channels, bit rate and codec. No sound."""
    codecs = sorted({clip.info["codec"] for clip in clips})

    def row(info: dict[str, str]) -> np.ndarray:
        numbers = [
            np.log(float(info["rate"])),
            float(info["channels"]),
            np.log(float(info["kbps"])),
        ]
        return np.array([*numbers, *(info["codec"] == codec for codec in codecs)], np.float32)

    return Table({clip.id: row(clip.info) for clip in clips})


# --- moments within clips ---


def ask_moments(
    judgement: Judgement, question: Question, data: Cache, repeated: Sequence[Encoder]
) -> Answered:
    """Chords or beats of moments, by one linear layer; without encoders, from log-mels and their neighbours."""
    dataset = judgement.load(question)
    view = same_clips(data, dataset)
    sides = judgement.sides(dataset)
    task = dataset.task
    assert task is not None
    sources = [
        frames.model_features(encoder.embedder, view) for encoder in repeated if encoder.embedder
    ] or [frames.mel_features(view)]
    found = [frames.probe_frames(task, view, source, sides) for source in sources]
    groups = tuple(str(group) for group in sides.groups[sides.test])
    runs = tuple(weighted(*result.per_clip[result.metric]) for result in found)
    return Answered(question, question.measures[0], groups, 0.0, runs)


def weighted(values: np.ndarray, importance: np.ndarray) -> Measure:
    """Mean of clips that count by their own importance; those in which nothing is asked count nothing."""
    asked = np.where(np.isfinite(values), importance, 0.0)
    return lambda weights: weights @ (asked * np.nan_to_num(values)) / (weights @ asked)


def same_clips(data: Cache, dataset: Dataset) -> Cache:
    """The cache as if it held a task's clips, with their targets, and nothing else."""
    place = {clip.id: index for index, clip in enumerate(data.clips)}
    chosen = [place[clip.id] for clip in dataset.clips]
    view = copy.copy(data)
    view.name, view.task, view.clips = dataset.name, dataset.task, dataset.clips
    view.frames, view.keys = data.frames[chosen], tuple(data.keys[index] for index in chosen)
    view._rows = [data._rows[index] for index in chosen]
    return view


# --- all of it ---


def judge(
    root: Path,
    specs: Sequence[str],
    side: str,
    out: Path,
    *,
    families: Sequence[str] = FAMILIES,
    moments_too: bool = False,
    workers: int = 1,
) -> Outcome:
    """Judge encoders and write table and figure; without all families there is no endpoint."""
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise RequestError(
            f"there is no family {unknown[0]!r}, expected some of {', '.join(FAMILIES)}."
        )
    if side not in ("valid", "test"):
        raise RequestError(f"the side is {side!r}, expected valid or test.")
    rows = dict(read_row(spec) for spec in specs)
    if len(rows) < len(specs):
        raise RequestError("two rows have one name, expected a name for each: NAME=ENCODER.")
    judgement = Judgement(root, side)
    answers: dict[str, list[Answered]] = {}
    notes: list[str] = []
    for family in families:
        data, everyone = judgement.cache(family, workers), list[Encoder]()
        for name, runs in rows.items():
            given, made = judge_family(judgement, family, name, runs, data, moments_too=moments_too)
            answers.setdefault(name, []).extend(given)
            everyone += made
        if family == "recordings":
            notes = heard(judgement, everyone, data, out)
            answers[METADATA] = [
                answer
                for question in DIAGNOSTICS
                for answer in ask(judgement, question, [metadata(data.clips)])
            ]
        if moments_too and family == FRAMES[0].family:
            answers["log-mel"] = [ask_moments(judgement, question, data, []) for question in FRAMES]
    outcome = replace(summarise(answers, side, notes), runs=rows)
    write_outcome(outcome, out)
    return outcome


def read_row(spec: str) -> tuple[str, list[str]]:
    """Name of a row, and its encoders: of "NAME=ENCODER+ENCODER", or of an encoder alone, which is its own name."""
    name, given, encoder = spec.partition("=")
    place = spec.partition(":")[2] or spec
    if not given or ("=" in place and Path(place).exists()):  # a folder may be called so
        return spec, [spec]
    return name, encoder.split("+")


def judge_family(
    judgement: Judgement,
    family: str,
    name: str,
    runs: Sequence[str],
    data: Cache,
    *,
    moments_too: bool,
) -> tuple[list[Answered], list[Encoder]]:
    """Answers of one row to all questions of a family, and the encoders that it stands for."""
    started = time.monotonic()
    train = [index for index, clip in enumerate(data.clips) if clip.split == "train"]
    try:
        made = [
            encoder
            for run in runs
            for encoder in encoders(run.replace("%FAMILY%", family), data=data, train=train)
        ]
    except RequestError as error:
        raise RequestError(
            f"row {name}: {error} (A '=' ends a row's name, and a '+' behind it divides its runs.)"
        ) from None
    tables = [features(judgement, encoder, family, data) for encoder in made]
    embedded = time.monotonic() - started
    answers = [
        answer
        for question in (*QUESTIONS, *DIAGNOSTICS)
        if question.family == family
        for answer in ask(judgement, question, tables)
    ]
    if moments_too and made[0].embedder is not None:
        answers += [
            ask_moments(judgement, question, data, made)
            for question in FRAMES
            if question.family == family
        ]
    print(
        f"{family}, {name}: features {embedded:.0f} s, probes {time.monotonic() - started - embedded:.0f} s",
        flush=True,
    )
    return answers, made


def heard(judgement: Judgement, encoders: Sequence[Encoder], data: Cache, out: Path) -> list[str]:
    """Notes on judged clips that are part of an encoder's training data."""
    kept = tuple(clip for clip in data.clips if clip.split in ("train", judgement.side))
    tested = [number for number, clip in enumerate(kept) if clip.split == judgement.side]
    return leak_notes(encoders, same_clips(data, Dataset(data.name, kept)), tested, out)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder that build.py filled")
    parser.add_argument(
        "--encoders",
        required=True,
        help="with commas between them; in features:DIR, %%FAMILY%% stands for the family",
    )
    parser.add_argument(
        "--side", choices=("valid", "test"), default="valid", help="whose clips are asked (valid)"
    )
    parser.add_argument(
        "--families",
        default=",".join(FAMILIES),
        help="some of them, to look at; the endpoint needs all",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    parser.add_argument(
        "--moments",
        action="store_true",
        help="also chords and beats of moments, for models of this package: minutes each",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode"
    )
    asked = parser.parse_args()
    try:
        specs = list(dict.fromkeys(asked.encoders.split(",")))
        families = asked.families.split(",")
        outcome = judge(
            asked.root.resolve(),
            specs,
            asked.side,
            asked.out,
            families=families,
            moments_too=asked.moments,
            workers=asked.workers,
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(outcome.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

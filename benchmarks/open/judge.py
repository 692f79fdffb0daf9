"""Evaluate encoders on the open benchmark: the same probe on every task, one table, one figure, one endpoint fixed beforehand.

    python benchmarks/open/judge.py ROOT --encoders mel-stats,mfcc,runs/mine/model --out runs/open

Encoders are written as for 'patchifier compare'; the first is compared with each other one. NAME=ENCODER is a row with that name, and
NAME=ENCODER+ENCODER+... one row of several runs, such as seeds: their mean. The validation side is for choosing; the test side is evaluated once, at
the end: --side test. Log-mels are computed once and kept in ROOT/caches, features in ROOT/features.
From OUT/predictions.npz alone, predictions.py makes the tables again.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from measures import (
    DIAGNOSTICS,
    FAMILIES,
    FRAMES,
    QUESTIONS,
    EncoderScore,
    Measure,
    Question,
    column_differences,
    hits,
)
from outcome import Outcome, summarise, write_outcome
from predictions import Prediction, depth_of
from predictions import write as write_predictions

from patchifier import cache, datasets, tasks
from patchifier.cache import Cache
from patchifier.config import (
    Config,
    RequestError,
    SpectrogramConfig,
    digest,
    read_changes,
    update,
)
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate import frames, probes
from patchifier.evaluate.encoders import Encoder, cached, encoders
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.evaluate.probes.heads import moments

METADATA = "file metadata"
SPECTROGRAM = SpectrogramConfig(
    n_mels=64, n_pitch_bands=216
)  # a model with mel bands alone gets those alone


@dataclass(frozen=True)
class BenchmarkSide:
    """One side of the benchmark.

    Parameters
    ----------
    root : Path
        Folder that build.py filled.
    side : "valid" or "test"
        Side that is evaluated. The probe is trained on training clips. Its regularisation is chosen on a tenth of their groups, or, for the
        test side, on validation clips.
    spectrogram : SpectrogramConfig
        That of the cached log-mels; a model with another one reads the audio.
    """

    root: Path
    side: str
    spectrogram: SpectrogramConfig = SPECTROGRAM

    def load(self, question: Question) -> Dataset:
        """Load the clips of a task; on the validation side, without test clips."""
        path = self.root / "tasks" / f"{question.name}.jsonl"
        if not path.exists():
            raise RequestError(
                f"{path} is not there, expected the benchmark: run 'python benchmarks/open/build.py {self.root}'."
            )
        found = datasets.load(path)
        sides = ("train", "valid") if self.side == "valid" else ("train", "valid", "test")
        return replace(found, clips=tuple(clip for clip in found.clips if clip.split in sides))

    def cache(self, family: str, workers: int) -> Cache:
        """Log-mels of all clips of a family, each clip once."""
        clips: dict[str, Clip] = {}
        for question in (*QUESTIONS, *DIAGNOSTICS):  # frame-wise tasks use some of these clips
            if question.family == family:
                clips |= {clip.id: replace(clip, target=None) for clip in self.load(question).clips}
        out = self.root / "caches" / cache_name(f"{family}-{self.side}", self.spectrogram)
        cache.prepare(
            Dataset(family, tuple(clips.values())), out, config=self.spectrogram, workers=workers
        )
        return Cache(out)

    def splits(self, dataset: Dataset) -> Splits:
        """Return the splits; on the validation side, its clips are the test, and some training clips are the validation."""
        splits = Splits.of(dataset.clips, [clip.split for clip in dataset.clips])
        if self.side != "valid":
            return splits
        return with_validation(replace(splits, valid=splits.test[:0], test=splits.valid), 0)

    def evaluated(self, dataset: Dataset) -> list[Clip]:
        """Clips of the side that is evaluated."""
        return [clip for clip in dataset.clips if clip.split == self.side]


@dataclass(frozen=True)
class FeatureTable:
    """Features of a family's clips by one encoder: a vector for each clip's id."""

    rows: dict[str, np.ndarray]

    def of(self, clips: Sequence[Clip]) -> np.ndarray:
        """Features (n, E)."""
        return np.stack([self.rows[clip.id] for clip in clips])


def features(benchmark: BenchmarkSide, encoder: Encoder, family: str, data: Cache) -> FeatureTable:
    """Compute the features of every clip, or read stored ones; those of training and validation clips serve both sides."""
    test = [index for index, clip in enumerate(data.clips) if clip.split == "test"]
    others = [index for index, clip in enumerate(data.clips) if clip.split != "test"]
    folder = benchmark.root / "features" / family
    rows = [
        (data.clips[index].id, row)
        for part in (others, test)
        if part
        for index, row in zip(part, cached(encoder, data, part, folder), strict=True)
    ]
    return FeatureTable(dict(rows))


# --- clips ---


def evaluate_question(
    benchmark: BenchmarkSide, question: Question, tables: Sequence[FeatureTable]
) -> Prediction:
    """Predict the evaluated clips of a task from the features of each run of one row."""
    dataset = benchmark.load(question)
    if question.task == "retrieval":
        return retrieve(benchmark, question, dataset, tables)
    task = dataset.task
    assert task is not None
    truth = tasks.encode_targets(task, [clip.target for clip in dataset.clips])
    sides = benchmark.splits(dataset)
    labelled = np.concatenate([sides.train, sides.valid])
    return Prediction(
        question,
        tuple(dataset.clips[index].id for index in sides.test),
        tuple(str(group) for group in sides.groups[sides.test]),
        task,
        truth[sides.test],
        probes.majority(task, truth[labelled], len(sides.test)),
        tuple(
            probes.probe("linear", task, table.of(dataset.clips), truth, sides).predictions
            for table in tables
        ),
    )


def retrieve(
    benchmark: BenchmarkSide, question: Question, dataset: Dataset, tables: Sequence[FeatureTable]
) -> Prediction:
    """Search each clip's track among all evaluated clips. Nothing is trained; features are standardised by training clips."""
    clips, train = (
        benchmark.evaluated(dataset),
        [clip for clip in dataset.clips if clip.split == "train"],
    )
    tracks = tuple(str(clip.group) for clip in clips)
    runs = []
    for table in tables:
        mean, scale = moments(table.of(train).astype(np.float64))
        standardised = (table.of(clips) - mean) / scale
        found = [hits(standardised, tracks, depth_of(name)) for name in question.measures]
        runs.append(np.stack(found, axis=1).astype(np.uint8))
    ids, nothing = tuple(clip.id for clip in clips), np.zeros(0)
    return Prediction(question, ids, tracks, None, nothing, nothing, tuple(runs))


def metadata(clips: Sequence[Clip]) -> FeatureTable:
    """Features of the file alone, without audio: rate, channels, bit rate and codec."""
    codecs = sorted({clip.info["codec"] for clip in clips})

    def row(info: dict[str, str]) -> np.ndarray:
        numbers = [
            np.log(float(info["rate"])),
            float(info["channels"]),
            np.log(float(info["kbps"])),
        ]
        return np.array([*numbers, *(info["codec"] == codec for codec in codecs)], np.float32)

    return FeatureTable({clip.id: row(clip.info) for clip in clips})


# --- frame-wise tasks ---


def evaluate_frames(
    benchmark: BenchmarkSide, question: Question, data: Cache, runs_of: Sequence[Encoder]
) -> EncoderScore:
    """Evaluate chords or beats by one linear layer; without encoders, from log-mels and their neighbours."""
    dataset = benchmark.load(question)
    view = same_clips(data, dataset)
    sides = benchmark.splits(dataset)
    task = dataset.task
    assert task is not None
    sources = [
        frames.model_features(encoder.embedder, view) for encoder in runs_of if encoder.embedder
    ] or [frames.mel_features(view)]
    found = [frames.probe_frames(task, view, source, sides) for source in sources]
    groups = tuple(str(group) for group in sides.groups[sides.test])
    runs = tuple(weighted(*result.per_clip[result.metric]) for result in found)
    return EncoderScore(question, question.measures[0], groups, 0.0, runs)


def weighted(values: np.ndarray, importance: np.ndarray) -> Measure:
    """Return the mean of clips by their importance; clips without a value count nothing."""
    valid = np.where(np.isfinite(values), importance, 0.0)
    return lambda weights: weights @ (valid * np.nan_to_num(values)) / (weights @ valid)


def same_clips(data: Cache, dataset: Dataset) -> Cache:
    """Return a view of the cache with the clips of a task alone, and their targets."""
    place = {clip.id: index for index, clip in enumerate(data.clips)}
    chosen = [place[clip.id] for clip in dataset.clips]
    view = copy.copy(data)
    view.name, view.task, view.clips = dataset.name, dataset.task, dataset.clips
    view.frames, view.keys = data.frames[chosen], tuple(data.keys[index] for index in chosen)
    view._rows = [data._rows[index] for index in chosen]
    return view


# --- the whole evaluation ---


def evaluate(
    root: Path,
    specs: Sequence[str],
    side: str,
    out: Path,
    *,
    families: Sequence[str] = FAMILIES,
    frame_wise: bool = False,
    workers: int = 1,
) -> Outcome:
    """Evaluate encoders and write table and figure; the endpoint needs all families."""
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
    benchmark = BenchmarkSide(root, side, spectrogram_for(rows))
    predictions: dict[str, list[Prediction]] = {}
    moments_of: dict[str, list[EncoderScore]] = {}  # frame-wise tasks
    notes: list[str] = []
    for family in families:
        data, evaluated = benchmark.cache(family, workers), list[Encoder]()
        for name, runs in rows.items():
            found, frame_scores, made = evaluate_family(
                benchmark, family, name, runs, data, frame_wise=frame_wise
            )
            predictions.setdefault(name, []).extend(found)
            moments_of.setdefault(name, []).extend(frame_scores)
            evaluated += made
        if family == "recordings":
            notes = find_leaks(benchmark, evaluated, data, out)
            predictions[METADATA] = [
                evaluate_question(benchmark, question, [metadata(data.clips)])
                for question in DIAGNOSTICS
            ]
        if frame_wise and family == FRAMES[0].family:
            moments_of["log-mel"] = [
                evaluate_frames(benchmark, question, data, []) for question in FRAMES
            ]
    answers = {
        name: [score for each in found for score in each.scores()]
        for name, found in predictions.items()
    }
    for name, frame_scores in moments_of.items():
        answers.setdefault(name, []).extend(frame_scores)
    outcome = replace(
        summarise(answers, side, notes), column_differences=column_differences(answers), runs=rows
    )
    write_outcome(outcome, out)
    write_predictions(out / "predictions.npz", predictions, side, notes, rows)
    return outcome


def cache_name(name: str, spectrogram: SpectrogramConfig) -> str:
    """Return the name of a cache of log-mels; that of the default spectrogram stays as it is."""
    return name if spectrogram == SPECTROGRAM else f"{name}-{digest(asdict(spectrogram))[:8]}"


def spectrogram_for(rows: Mapping[str, Sequence[str]]) -> SpectrogramConfig:
    """Return the spectrogram of the first model in a folder that has pitch bands, else the default."""
    for run in (run for runs in rows.values() for run in runs):
        path = Path(run.partition(":")[2] or run) / "config.json"
        if path.exists():
            found = update(Config(), read_changes(path)).spectrogram
            if found.n_pitch_bands:
                return found
    return SPECTROGRAM


def read_row(spec: str) -> tuple[str, list[str]]:
    """Return name and encoders of a row: of "NAME=ENCODER+ENCODER", or of an encoder alone, which is its own name."""
    name, given, encoder = spec.partition("=")
    place = spec.partition(":")[2] or spec
    if not given or ("=" in place and Path(place).exists()):  # a folder may be called so
        return spec, [spec]
    return name, encoder.split("+")


def evaluate_family(
    benchmark: BenchmarkSide,
    family: str,
    name: str,
    runs: Sequence[str],
    data: Cache,
    *,
    frame_wise: bool,
) -> tuple[list[Prediction], list[EncoderScore], list[Encoder]]:
    """Evaluate one row on all tasks of a family; return its predictions, its scores of frame-wise tasks and its encoders."""
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
    tables = [features(benchmark, encoder, family, data) for encoder in made]
    embedded = time.monotonic() - started
    predictions = [
        evaluate_question(benchmark, question, tables)
        for question in (*QUESTIONS, *DIAGNOSTICS)
        if question.family == family
    ]
    frame_scores = []
    if frame_wise and made[0].embedder is not None:
        frame_scores = [
            evaluate_frames(benchmark, question, data, made)
            for question in FRAMES
            if question.family == family
        ]
    print(
        f"{family}, {name}: features {embedded:.0f} s, probes {time.monotonic() - started - embedded:.0f} s",
        flush=True,
    )
    return predictions, frame_scores, made


def find_leaks(
    benchmark: BenchmarkSide, encoders: Sequence[Encoder], data: Cache, out: Path
) -> list[str]:
    """Return notes on evaluated clips that are part of an encoder's training data."""
    kept = tuple(clip for clip in data.clips if clip.split in ("train", benchmark.side))
    tested = [number for number, clip in enumerate(kept) if clip.split == benchmark.side]
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
        "--side", choices=("valid", "test"), default="valid", help="side that is evaluated (valid)"
    )
    parser.add_argument(
        "--families",
        default=",".join(FAMILIES),
        help="some of the families; the endpoint needs all",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    parser.add_argument(
        "--moments",
        action="store_true",
        help="also frame-wise chords and beats, for models of this package: minutes each",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode"
    )
    arguments = parser.parse_args()
    try:
        specs = list(dict.fromkeys(arguments.encoders.split(",")))
        families = arguments.families.split(",")
        outcome = evaluate(
            arguments.root.resolve(),
            specs,
            arguments.side,
            arguments.out,
            families=families,
            frame_wise=arguments.moments,
            workers=arguments.workers,
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(outcome.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The hard retrieval of the open benchmark: a deformed query of 3 s finds its track among hundreds of pre-training.

    python benchmarks/open/hard.py ROOT --encoders mel-stats,runs/mine/model --out runs/hard

endpoint.json beside this file fixes everything beforehand: lengths, columns, weights, seeds, and how many queries there are. A root with other numbers is refused.
Queries are cut from clips of the validation side. The database holds one clip of each of their tracks, which no query is cut from, and clips of every recording
of pretraining-recordings.jsonl. Nothing is trained: features are standardised by the recordings of the training side and compared by cosine.

Encoders are written as for judge.py; the first is compared with each other one. Clips, log-mels and features are kept in ROOT/hard.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import soxr
from groups import dice, read_manifest, require_disjoint, share
from judge import cache_name, read_row, same_clips, spectrogram_for
from measures import differences, draw_weights, interval
from outcome import lines
from recordings import CLIP_S
from sound import SAMPLE_RATE, render_all

from patchifier import audio, cache
from patchifier.cache import Cache
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate.encoders import Encoder, cached, encoders
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.evaluate.probes.heads import moments
from patchifier.evaluate.robustness import PERTURBATIONS, pink_noise
from patchifier.io import replaced_file, write_json, write_rows

ENDPOINT = Path(__file__).with_name("endpoint.json")
CLEAN = "clean"
DATABASE = "database"
TILT_HZ = (40.0, 1000.0, 11_025.0)  # where a tilt begins, does nothing, and ends

Deform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


# --- what is fixed ---


@dataclass(frozen=True)
class Column:
    """A column of the table: how queries are deformed, and its weight in the endpoint."""

    name: str
    deformation: str
    amount: float
    weight: float

    @property
    def speed(self) -> float:
        """How many seconds of sound a second of the query has."""
        return self.amount if self.deformation == "speed" else 1.0


@dataclass(frozen=True)
class Endpoint:
    """Everything that is fixed beforehand: the values of endpoint.json, whose reasons are for readers.

    `expected` counts tracks, queries and distractors; `digest` tells one file from another.
    """

    seed: str
    query_s: float
    database_s: float
    queries_per_clip: int
    distractors_per_track: int
    draws: int
    bootstrap_seed: int
    columns: tuple[Column, ...]
    expected: Mapping[str, int]
    digest: str

    @classmethod
    def read(cls, path: Path = ENDPOINT) -> "Endpoint":
        """Read a file; its weights have to sum to 1, and its first column has to be the clean one."""
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        columns = tuple(
            Column(**{name: value for name, value in row.items() if name != "why"})
            for row in content["columns"]
        )
        total = sum(column.weight for column in columns)
        if abs(total - 1) > 1e-9 or columns[0].name != CLEAN:
            raise RequestError(
                f"{path}: weights sum to {total:g} and the first column is {columns[0].name!r}, expected 1 and {CLEAN!r}."
            )
        values = {name: row["value"] for name, row in content["settings"].items()}
        expected = {name: row["value"] for name, row in content["expected"].items()}
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(columns=columns, expected=expected, digest=digest, **values)


# --- deformations ---


def deformation(column: Column) -> Deform:
    """Return the function that deforms a waveform (S,) at 22,050 Hz; of a speed, it gives S / speed samples."""
    made: dict[str, Callable[[float], Deform]] = {
        "mp3": _mp3,
        "gain_db": lambda amount: lambda waveform, _: waveform * 10 ** (amount / 20),
        "speed": lambda amount: (
            lambda waveform, _: soxr.resample(
                waveform, amount * SAMPLE_RATE, SAMPLE_RATE, quality="HQ"
            )
        ),
        "pink_snr_db": lambda amount: (
            lambda waveform, generator: with_pink(waveform, amount, generator)
        ),
        "tilt_db": lambda amount: lambda waveform, _: tilted(waveform, amount),
    }
    if column.deformation not in made:
        raise RequestError(
            f"there is no deformation {column.deformation!r}, expected one of {', '.join(made)}."
        )
    return made[column.deformation](column.amount)


def _mp3(kbits: float) -> Deform:
    found = PERTURBATIONS[f"mp3-{kbits:g}"]
    return lambda waveform, generator: found.apply(waveform, SAMPLE_RATE, generator)


def with_pink(waveform: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """Add pink noise whose power over the clip is so much below the clip's own."""
    noise = pink_noise(len(waveform), SAMPLE_RATE, generator)
    return waveform + noise * np.sqrt(np.mean(waveform**2)) * 10 ** (-snr_db / 20)


def tilted(waveform: np.ndarray, slope_db: float) -> np.ndarray:
    """Lower high and raise low frequencies: by so many dB an octave, none at 1 kHz, without a delay."""
    padded = len(waveform) + SAMPLE_RATE // 2  # what would wrap around falls into the padding
    lowest, centre, highest = TILT_HZ
    hertz = np.fft.rfftfreq(padded, 1 / SAMPLE_RATE).clip(lowest, highest)
    gain = 10 ** (-slope_db * np.log2(hertz / centre) / 20)
    return np.fft.irfft(np.fft.rfft(waveform, padded) * gain, padded)[: len(waveform)]


# --- clips ---


@dataclass(frozen=True)
class Query:
    """A query: where it lies in a clip of the root, and the file of its deformed form."""

    path: str
    source: str
    start_s: float
    query_s: float
    column: Column
    seed: str
    track: str


def hard_clips(root: Path, endpoint: Endpoint) -> tuple[list[Clip], list[Query]]:
    """Draw the database, distractors last, and the queries, column by column.

    Raises
    ------
    RequestError
        If there is no benchmark in the root, its numbers are not those that are fixed, or a distractor is of another side.
    """
    manifest, training = (
        root / "tasks" / "recordings-retrieval.jsonl",
        root / "pretraining-recordings.jsonl",
    )
    if not (manifest.exists() and training.exists()):
        raise RequestError(
            f"{manifest} or {training} is not there, expected the benchmark: run 'python benchmarks/open/build.py {root}'."
        )
    rows, trained = read_manifest(manifest), read_manifest(training)
    require_disjoint(trained, rows)
    by_track = grouped([row for row in rows if row["split"] == "valid"])
    kept = {track: chosen(endpoint.seed, paths, 1) for track, paths in by_track.items()}
    distractors = [
        (track, path)
        for track, paths in grouped(trained).items()
        for path in chosen(endpoint.seed, paths, endpoint.distractors_per_track)
    ]
    seconds = {row["path"]: row["seconds"] for row in trained}
    database = [
        _entry(root, track, path, CLIP_S, endpoint, "valid")
        for track, paths in kept.items()
        for path in paths
    ] + [_entry(root, track, path, seconds[path], endpoint, "train") for track, path in distractors]
    queries = [
        query
        for column in endpoint.columns
        for track, paths in by_track.items()
        for path in paths
        if path not in kept[track]
        for query in _queries(path, track, column, endpoint)
    ]
    found = {"tracks": len(by_track), "distractors": len(distractors)}
    found["queries"] = len(queries) // len(endpoint.columns)
    if found != endpoint.expected:
        raise RequestError(
            f"{root} gives {found}, expected {dict(endpoint.expected)}, as fixed beforehand: build the root again."
        )
    return database, queries


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Paths of each track, both in order."""
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["group"], row["path"])):
        found.setdefault(row["group"], []).append(row["path"])
    return found


def chosen(seed: str, paths: Sequence[str], count: int) -> list[str]:
    """Choose so many clips by their hash."""
    return sorted(paths, key=lambda path: share(seed, "database", path))[:count]


def _entry(
    root: Path, track: str, path: str, seconds: float, endpoint: Endpoint, split: str
) -> Clip:
    """A clip of the database: the middle of a file."""
    length = min(endpoint.database_s, seconds)
    start = round((seconds - length) / 2, 3)
    name = f"{DATABASE}/{path}"
    return Clip(name, str(root / path), start, start + length, split=split, group=track)


def _queries(path: str, track: str, column: Column, endpoint: Endpoint) -> list[Query]:
    """Queries of a clip, one in each of equal stretches; the same places in every column."""
    stretch = CLIP_S / endpoint.queries_per_clip
    longest = endpoint.query_s * max(column.speed for column in endpoint.columns)
    made = []
    for number in range(endpoint.queries_per_clip):
        spare = dice(endpoint.seed, "query", path, number).uniform(0, stretch - longest)
        start = round(number * stretch + float(spare), 3)
        name = path.removeprefix("clips/recordings/").rpartition(".")[0]
        file = f"hard/clips/{column.name}/{name}-{number}.wav"
        made.append(Query(file, path, start, endpoint.query_s, column, endpoint.seed, track))
    return made


def write_query(root: Path, query: Query) -> str:
    """Write the missing file of a query, in floats, so that nothing is clipped."""
    end = query.start_s + query.query_s * query.column.speed
    waveform = audio.load(
        root / query.source, sample_rate=SAMPLE_RATE, start_s=query.start_s, end_s=end
    )
    generator = dice(query.seed, query.column.name, query.source, query.start_s)
    deformed = deformation(query.column)(waveform.astype(np.float64), generator)
    samples = round(query.query_s * SAMPLE_RATE)
    whole = np.pad(deformed[:samples], (0, max(0, samples - len(deformed)))).astype(np.float32)
    with replaced_file(root / query.path) as new:
        soundfile.write(new, whole, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return query.path


def prepare(
    root: Path, endpoint: Endpoint, spectrogram: SpectrogramConfig, workers: int
) -> tuple[Cache, list[Query]]:
    """Log-mels of the database, then of all queries; the deformed ones are written first."""
    database, queries = hard_clips(root, endpoint)
    deformed = [query for query in queries if query.column.name != CLEAN]
    render_all(root, deformed, workers, lambda title: lambda *done: None, write_query)
    query_clips = [_query_clip(root, query) for query in queries]
    out = root / "hard" / cache_name("cache", spectrogram)
    made = cache.prepare(
        Dataset("hard", (*database, *query_clips)), out, config=spectrogram, workers=workers
    )
    if made.skipped:
        raise RequestError(
            f"{len(made.skipped)} clips cannot be read, the first is {made.skipped[0]}: build the root again."
        )
    return Cache(out), queries


def _query_clip(root: Path, query: Query) -> Clip:
    name = query.path.removeprefix("hard/clips/").rpartition(".")[0]
    if query.column.name != CLEAN:
        return Clip(name, str(root / query.path), split="valid", group=query.track)
    end = query.start_s + query.query_s
    return Clip(
        name, str(root / query.source), query.start_s, end, split="valid", group=query.track
    )


# --- scores ---


def found_tracks(
    features: np.ndarray, database: Sequence[str], train: Sequence[int], targets: Sequence[str]
) -> np.ndarray:
    """Whether the nearest entry of the database is of the query's track: (n,) of 0 and 1.

    Features are those of the database (its training clips are `train`), then of the queries. They are standardised by the training clips.
    """
    mean, scale = moments(features[train].astype(np.float64))
    standard = (features - mean) / scale
    units = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    nearest = (units[len(database) :] @ units[: len(database)].T).argmax(1)
    return (np.asarray(database)[nearest] == np.asarray(targets)).astype(float)


@dataclass(frozen=True)
class HardOutcome:
    """Content of the table: a row for each encoder and column, paired differences from the first encoder, notes and facts."""

    scores: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    notes: list[str]
    facts: dict[str, Any]

    def markdown(self) -> str:
        """Tables of Markdown."""
        names = list(dict.fromkeys(row["quantity"] for row in self.scores))
        by_encoder: dict[str, dict[str, str]] = {}
        for row in self.scores:
            cells = by_encoder.setdefault(row["encoder"], {"encoder": row["encoder"]})
            cells[row["quantity"]] = span(row)
        gaps: dict[str, dict[str, str]] = {}
        for row in self.differences:
            pair = f"{row['first']} - {row['second']}"
            cells = gaps.setdefault(pair, {"encoder": pair})
            cells[row["quantity"]] = span(row, signed=True)
            cells |= {"p": f"{row['p_holm']:.3g}"} if row["quantity"] == "endpoint" else {}
        counted = ", ".join(f"{self.facts[name]} {name}" for name in self.facts["counted"])
        parts = [
            f"Hard retrieval, validation side: {counted}; endpoint {self.facts['digest']}. Per cent, 95 % intervals by bootstrap over tracks.",
            "",
            *transposed(by_encoder, names, "track@1"),
        ]
        if gaps:
            parts += ["", "Paired differences, in points; p of the endpoint corrected by Holm.", ""]
            parts += transposed(gaps, [names[0], "p", *names[1:]], "difference")
        return "\n".join([*parts, "", *self.notes]) + "\n"


def transposed(
    by_encoder: Mapping[str, Mapping[str, str]], names: Sequence[str], corner: str
) -> list[str]:
    """A table with a column for each encoder."""
    rows = [
        {corner: name} | {encoder: cells.get(name, "") for encoder, cells in by_encoder.items()}
        for name in names
    ]
    return lines(rows, [corner, *by_encoder])


def span(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval, in per cent."""
    form = "+.1f" if signed else ".1f"
    value, low, high = (format(100 * row[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def quantities(
    hits: Mapping[str, np.ndarray], weights: np.ndarray, columns: Sequence[Column]
) -> dict[str, np.ndarray]:
    """Endpoint, track@1 of each column and its ratio to the clean one: (draws + 1,) each, the sample first.

    `hits` has the mean over runs for each query, (n,), by column; `weights` are (draws + 1, n). A draw that finds no clean query has no ratio.
    """
    scores = {name: weights @ values / weights.sum(1) for name, values in hits.items()}
    found = {"endpoint": sum(column.weight * scores[column.name] for column in columns)} | scores
    clean = np.where(scores[CLEAN] > 0, scores[CLEAN], np.nan)
    deformed = [column for column in columns if column.name != CLEAN]
    share = sum(column.weight for column in deformed)
    mean = sum(column.weight * scores[column.name] for column in deformed) / share
    ratios = {f"{column.name} / clean": scores[column.name] / clean for column in deformed}
    return found | {"deformed / clean": mean / clean} | ratios


def summarise(
    hits: Mapping[str, Mapping[str, np.ndarray]], tracks: Sequence[str], endpoint: Endpoint
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores with intervals, and paired differences from the first encoder; the draws are the same for all."""
    (weights,) = draw_weights([tracks], endpoint.draws, endpoint.bootstrap_seed)
    draws = {name: quantities(each, weights, endpoint.columns) for name, each in hits.items()}
    scores, compared = [], []
    for name, each in draws.items():
        for quantity, values in each.items():
            value, low, high = interval(values)
            scores.append({"encoder": name, "quantity": quantity})
            scores[-1] |= {"value": value, "low": low, "high": high}
    first = next(iter(draws))
    for quantity in draws[first]:
        alike = {name: each[quantity] for name, each in draws.items()}
        compared += [{"quantity": quantity} | row for row in differences(first, alike)]
    return scores, compared


def evaluate(
    root: Path,
    specs: Sequence[str],
    out: Path,
    *,
    endpoint: Endpoint | None = None,
    workers: int = 1,
) -> HardOutcome:
    """Evaluate encoders, write table.md, scores.csv, differences.csv and results.json, and return their content."""
    endpoint = endpoint or Endpoint.read()
    rows = dict(read_row(spec) for spec in specs)
    if len(rows) < len(specs):
        raise RequestError("two rows have one name, expected a name for each: NAME=ENCODER.")
    data, queries = prepare(root, endpoint, spectrogram_for(rows), workers)
    size = len(data.clips) - len(queries)
    database = [str(clip.group) for clip in data.clips[:size]]
    train = [number for number in range(size) if data.clips[number].split == "train"]
    tracks = [query.track for query in queries if query.column.name == CLEAN]
    hits: dict[str, dict[str, np.ndarray]] = {}
    made: list[Encoder] = []
    for name, runs in rows.items():
        own = [one for run in runs for one in encoders(run, data=data, train=train)]
        every = [
            found_tracks(
                cached(encoder, data, range(len(data.clips)), root / "hard" / "features"),
                database,
                train,
                [query.track for query in queries],
            )
            for encoder in own
        ]
        by_column = np.mean(every, axis=0).reshape(len(endpoint.columns), -1)
        hits[name] = {
            column.name: values for column, values in zip(endpoint.columns, by_column, strict=True)
        }
        made += own
    scores, compared = summarise(hits, tracks, endpoint)
    counted = {**endpoint.expected, "entries": size}
    facts = {"digest": endpoint.digest, "runs": rows, "counted": list(counted), **counted}
    outcome = HardOutcome(scores, compared, find_leaks(made, data, size, out), facts)
    write_outcome(outcome, out)
    return outcome


def find_leaks(made: Sequence[Encoder], data: Cache, size: int, out: Path) -> list[str]:
    """Return notes on validation-side tracks of the database that are part of an encoder's training data."""
    kept = tuple(clip for clip in data.clips[:size] if clip.split == "valid")
    return leak_notes(made, same_clips(data, Dataset(data.name, kept)), range(len(kept)), out)


def write_outcome(outcome: HardOutcome, out: Path) -> None:
    """Write the tables."""
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "scores.csv", outcome.scores)
    (out / "differences.csv").unlink(missing_ok=True)  # of an earlier evaluation in this folder
    if outcome.differences:
        write_rows(out / "differences.csv", outcome.differences)
    with replaced_file(out / "table.md") as new:
        new.write_text(outcome.markdown(), encoding="utf-8")
    write_json(out / "results.json", vars(outcome))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder that build.py filled")
    parser.add_argument("--encoders", required=True, help="as for judge.py, with commas between")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode"
    )
    arguments = parser.parse_args()
    try:
        specs = list(dict.fromkeys(arguments.encoders.split(",")))
        outcome = evaluate(
            arguments.root.resolve(), specs, arguments.out, workers=arguments.workers
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(outcome.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

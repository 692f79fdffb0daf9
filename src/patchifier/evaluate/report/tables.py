"""Test scores as rows, as a table of method by task, and written as CSV and Markdown."""

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    RunFolder,
    get_part,
    method_rows,
    to_number,
)
from patchifier.io import to_cell
from patchifier.statistics import NONE_DIFFERS

OURS = "patchifier"  # the model of a demo; a fine-tuned one has the name of its folder
ENCODERS = {  # in the order of the table
    OURS: "the model of this report",
    "patchifier-base": "the model that comes with the package, trained for longer on other music",
    "random": "the same network with random weights, drawn once, and the same descriptors "
    "(formulas), if the model has any: what the architecture is worth",
    "mel-stats": "mean and standard deviation of each mel band over the clip",
    "mfcc": "hand-made timbre features: mel-frequency cepstral coefficients",
    "chroma": "hand-made harmony features: energy of the twelve pitch classes",
    "majority": "predicts the most frequent label, or the mean, of the training clips",
}
METHOD_TEXTS = {  # the same
    "linear-probe": "only a new last layer is trained",
    "freeze-extractor": "the bottleneck, which connects patches, and the last layer are trained",
    "freeze-bottleneck": "the extractor, which reads patches, and the last layer are trained",
    "full": "everything is trained",
    "logistic": "logistic regression on a fixed vector of each clip",
    "ridge": "ridge regression on a fixed vector of each clip",
    "none": "nothing is trained",
}
METRICS = {
    "accuracy": "accuracy (%)",
    "r2": "R² (1 is perfect)",
    "roc_auc": "ROC AUC (1 is perfect)",
}
ADVICE = (
    "Try a higher learning rate (--finetune.learning_rates '[1e-5, 1e-4, 1e-3]' takes the one that "
    "validates best) or more steps (--finetune.training.epochs)."
)
APART = "Columns are different test clips: compare within a column only."


@dataclass(frozen=True)
class Column:
    """One set of test clips and its metric; only rows of one column can be ranked."""

    dataset: str
    metric: str
    n: str
    test: str

    @property
    def title(self) -> str:
        """Name of the data set, or what the test is."""
        return self.dataset or self.test or "task not stated"

    @property
    def split(self) -> str:
        """How the test clips were chosen."""
        return self.test.partition("; ")[2]

    @property
    def clips(self) -> str:
        """Number of test clips."""
        return f"{int(self.n):,}" if self.n.isdecimal() else self.n

    @property
    def measure(self) -> str:
        """The metric with its unit."""
        return METRICS.get(self.metric, self.metric)


def escape(value: object) -> str:
    """Make text safe for HTML and one line long."""
    return html.escape(" ".join(str(value).split()))


def collect_rows(
    runs: Sequence[RunFolder], demos: Mapping[Path, Row], problems: list[str]
) -> list[dict[str, Any]]:
    """Every test score once, in the order of the table, with its source and test set."""
    rows: list[dict[str, Any]] = []
    for folder, results in demos.items():
        inside = [run for run in runs if run.path.is_relative_to(folder) and run.task]
        # A row of the demo was tested on the clips of a run below it where their numbers agree.
        tests = {
            str(row.get("n")): run.test
            for run in inside
            for method in METHODS
            for row in method_rows(run, method, [])
        }
        other = inside[0].task if inside else ""
        more = {"source": results["source"], "dataset": inside[0].dataset if inside else ""}
        for row in results.get("rows", []):
            about = {"test": tests.get(str(row.get("n")), other)}
            about |= {"ours": row.get("encoder") == OURS, **_training(row, inside)}
            rows.append({**row, **more, **about})
    for run in runs:
        if run.kind == "finetune":
            rows += _run_rows(run, rows, demos, problems)
    return sorted(rows, key=_table_order)


def _run_rows(
    run: RunFolder, known: Sequence[Row], demos: Mapping[Path, Row], problems: list[str]
) -> list[dict[str, Any]]:
    """Rows of a fine-tuning run that are not known: from a demo above it, or from a like run."""
    more = {"source": run.label, "test": run.test, "dataset": run.dataset}
    above = {
        results["source"] for folder, results in demos.items() if run.path.is_relative_to(folder)
    }
    found = []
    for method in sorted(path.parent.name for path in run.path.glob("*/results.json")):
        for row in method_rows(run, method, problems):
            learns = method in METHODS
            here = {**row, **more, "rate": _rate(run) if row.get("method") in METHODS else ""}
            here["model"] = _model(run) if learns else ""
            here["ours"] = learns and row.get("encoder") != "random"
            alike = [r for r in known if r["source"] in above]
            alike += [] if learns else [r for r in known if r["test"] == run.test]
            if not any(same_score(row, other) for other in alike):
                found.append(here)
    return found


def _training(row: Row, runs: Sequence[RunFolder]) -> dict[str, str]:
    """Learning rate and model of a row of a demo, from the run below it that has this score."""
    method = str(row.get("method"))
    for run in runs:
        known = method_rows(run, method, []) if method in METHODS else []
        if any(same_score(row, other) for other in known):
            return {"rate": _rate(run), "model": _model(run)}
    return {}


def _model(run: RunFolder) -> str:
    """Hash of the model that a run tuned; random weights are no model to tell apart."""
    return "" if run.facts.get("encoder") == "random" else str(run.facts.get("model weights", ""))


def _rate(run: RunFolder) -> str:
    """Learning rate of a run, or how it was chosen."""
    settings = get_part(run.config, "finetune")
    if rates := settings.get("learning_rates"):
        return f"best on validation of {', '.join(f'{to_number(rate):g}' for rate in rates)}"
    rate = to_number(get_part(settings, "training").get("learning_rate"))
    return f"{rate:g}" if rate == rate else ""


def tuning_text(settings: Mapping[str, Any]) -> str:
    """Say in words how fine-tuning trains, by the section ``finetune`` of a config.

    Examples
    --------
    >>> training = {"learning_rate": 1e-4, "steps": 60, "batch_size": 16, "schedule": "cosine"}
    >>> tuning_text({"training": training, "head_learning_rate": 1e-3, "patience": 60})
    'learning rate 0.0001 (cosine), of the head 0.001; batches of 16; 60 steps; patience 60'
    """
    training = get_part(settings, "training")
    if rates := settings.get("learning_rates"):
        rate = f"the best on validation of {', '.join(f'{to_number(each):g}' for each in rates)}"
    else:
        rate = f"{to_number(training.get('learning_rate')):g}"
    parts = [f"learning rate {rate} ({training.get('schedule', 'constant')})"]
    if head := settings.get("head_learning_rate"):
        parts[0] += f", of the head {to_number(head):g}"
    length = f"{training.get('steps')} steps"
    if not training.get("steps"):
        length = f"{to_number(training.get('epochs')):g} epochs"
    parts += [f"batches of {training.get('batch_size', '?')}", length]
    return "; ".join([*parts, f"patience {settings.get('patience', '?')}"])


def same_score(row: Row, other: Row) -> bool:
    """Whether two rows tell the same score, to half of the last digit shown."""
    alike = all(row.get(key) == other.get(key) for key in ("encoder", "method", "metric", "n"))
    return alike and abs(to_number(row.get("value")) - to_number(other.get("value"))) < 5e-4


def _table_order(row: Row) -> tuple[Any, ...]:
    n = to_number(row.get("n"))
    test = (-n if math.isfinite(n) else 0.0, str(row["test"]), str(row.get("metric")))
    return (*test, *_line_order(row), str(row["source"]))


def _line_order(row: Row) -> tuple[Any, ...]:
    def place(name: Any, known: Iterable[str]) -> tuple[int, str]:
        return (list(known).index(name) if name in known else 99, str(name))

    return (
        (-1, str(row.get("encoder"))) if row.get("ours") else place(row.get("encoder"), ENCODERS),
        place(row.get("method"), METHOD_TEXTS),
        str(row.get("rate", "")),
    )


def group_rows(rows: Sequence[Row]) -> dict[Column, list[Row]]:
    """Rows tested on the same clips by the same metric; only these can be ranked."""
    groups: dict[Column, list[Row]] = {}
    for row in rows:
        about = (row.get("dataset", ""), row.get("metric"), row.get("n"), row["test"])
        groups.setdefault(Column(*map(str, about)), []).append(row)
    return groups


def table_lines(groups: Mapping[Column, Sequence[Row]]) -> list[dict[Column, Row]]:
    """Lines of the paper's Table 1: method by task, each line one encoder, method and rate.

    Two rows of one column that agree in all of these are in two lines.
    """
    lines: dict[tuple[Any, ...], dict[Column, Row]] = {}
    for column, group in groups.items():
        for row in group:
            encoder, *rest = _line_order(row)
            key: tuple[Any, ...] = (encoder, str(row.get("model", "")), *rest)
            while column in lines.get(key, {}):
                key = (*key, str(row["source"]))
            lines.setdefault(key, {})[column] = row
    return [lines[key] for key in sorted(lines)]


def score_text(value: object, metric: object, *, signed: bool = False) -> str:
    """Write a score: accuracies in percent, others as they are."""
    number = to_number(value)
    if not math.isfinite(number):
        return "–"
    number, digits = (100.0 * number, 1) if metric == "accuracy" else (number, 3)
    return (f"{number:+.{digits}f}" if signed else f"{number:.{digits}f}").replace("-", "−")


def with_unit(row: Row) -> str:
    """Score of a row with its unit."""
    metric = row.get("metric")
    return score_text(row.get("value"), metric) + (" %" if metric == "accuracy" else "")


def interval_text(row: Row, metric: object, *, signed: bool = False) -> str:
    """Write an interval of scores, or what stands in its place."""
    if row.get("learnt_nothing"):
        return f"learnt nothing: {row['learnt_nothing']}"
    if row.get("equal_predictions"):
        return "equal predictions"
    low, high = (score_text(row.get(key), metric, signed=signed) for key in ("low", "high"))
    note = f"; {NONE_DIFFERS}" if signed and row.get("agree") and not row.get("value") else ""
    return "–" if low == high == "–" else f"{low} to {high}{note}"


def caution_text(group: Sequence[Row]) -> str:
    """Say how wide the widest interval of a group is; a row that learnt nothing shows none."""
    shown = [row for row in group if not row.get("learnt_nothing")]
    widths = [(to_number(row.get("high")) - to_number(row.get("low"))) / 2 for row in shown]
    widths = [width for width in widths if width > 0]
    if not widths:
        return ""
    metric, n = group[0].get("metric"), group[0].get("n", "?")
    points = f"{100 * max(widths):.0f} points" if metric == "accuracy" else f"{max(widths):.2f}"
    return (
        f"With {n} test clips the 95 % intervals reach ± {points}: "
        "a smaller difference between two rows settles nothing by itself."
    )


COLUMNS = (
    "dataset", "encoder", "method", "rate", "metric", "value", "low", "high", "n", "test", "source",
)  # fmt: skip


def csv_table(rows: Sequence[Row]) -> str:
    """Lay all rows out as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: to_cell(row.get(name, "")) for name in COLUMNS} for row in rows)
    return file.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """Lay all rows out as Markdown, one table for each set of test clips."""
    parts = []
    for column, group in group_rows(rows).items():
        lines = [
            f"**{escape(column.title)}**, {escape(column.clips)} test clips. {escape(column.test)}",
            "",
            "| encoder | method | metric | value | 95 % interval | n | source |",
            "|---|---|---|---:|---:|---:|---|",
        ]
        lines += [_markdown_row(row) for row in group]
        parts.append("\n".join([*lines, "", escape(caution_text(group))]).rstrip() + "\n")
    return "\n".join(parts) or "No test score yet.\n"


def _markdown_row(row: Row) -> str:
    metric = row.get("metric")
    cells = [row.get("encoder"), row.get("method"), METRICS.get(str(metric), metric)]
    cells += [score_text(row.get("value"), metric), interval_text(row, metric)]
    cells += [row.get("n", "?"), row["source"]]
    return f"| {' | '.join(escape(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def comparison_label(difference: Row) -> str:
    """Verb between the names of two encoders.

    "beats", "is beaten by", ..., by the paired interval.
    """
    low, high = to_number(difference.get("low")), to_number(difference.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "has no interval, so cannot be told apart from"
    return "beats" if low > 0 else "is beaten by" if high < 0 else "cannot be told apart from"


def random_notes(rows: Sequence[Row]) -> list[str]:
    """Say of each encoder with random weights of which architecture and how many draws it is.

    Examples
    --------
    >>> note = "mean of 5 draws, random weights in the architecture of the paper, cls"
    >>> random_notes([{"encoder": "mfcc", "note": ""}, {"encoder": "random", "note": note}])
    ['random: mean of 5 draws, random weights in the architecture of the paper, cls.']
    """
    notes = {row["encoder"]: str(row.get("note")) for row in rows}
    return [f"{name}: {note}." for name, note in notes.items() if "architecture of" in note]


def label(row: Row) -> str:
    """Name of an encoder: the end of a long path, and the number of examples of few-shot."""
    name, method = str(row.get("encoder")), str(row.get("method", ""))
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"{name}, {method.partition(', ')[2]}" if method.startswith("few-shot, ") else name


def none_above_majority(rows: Sequence[Row]) -> bool:
    """Whether rows of one test have fine-tuned models, none of which is above the majority.

    Examples
    --------
    >>> tuned = {"encoder": "mine", "method": "full", "value": 0.3}
    >>> none_above_majority([tuned, {"encoder": "majority", "method": "none", "value": 0.3}])
    True
    """
    tuned = [row for row in rows if row.get("method") in METHODS and row["encoder"] != "random"]
    majority = [row for row in rows if row.get("encoder") == "majority"]
    if not tuned or not majority:
        return False
    best, least = (max(to_number(row.get("value")) for row in each) for each in (tuned, majority))
    return best <= least


def learnt_nothing_notes(rows: Sequence[Row]) -> list[str]:
    """Name the rows whose predictions are all the same, and what to try.

    The rows are those of one test.

    Examples
    --------
    >>> row = {"encoder": "mine", "method": "full", "learnt_nothing": "every clip is called jazz"}
    >>> learnt_nothing_notes([row])[0]
    'mine, full: learnt nothing: every clip is called jazz.'
    """
    lines = [
        f"{row['encoder']}, {row['method']}: learnt nothing: {row['learnt_nothing']}."
        for row in rows
        if row.get("learnt_nothing")
    ]
    if none_above_majority(rows):
        lines.append("No fine-tuned row is above majority.")
    return [*lines, ADVICE] if lines else []

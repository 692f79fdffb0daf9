"""Predictions of all rows on the evaluated clips, in one file; and all tables again from that file, without audio, features or models.

python benchmarks/open/predictions.py benchmarks/results/open_test.npz --out runs/open
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measures import (
    DIAGNOSTICS,
    QUESTIONS,
    EncoderScore,
    Question,
    chance_of_hit,
    column_differences,
    mean_of,
    measure,
)
from outcome import Outcome, summarise, write_outcome

from patchifier.config import RequestError
from patchifier.io import replaced_file
from patchifier.tasks import Task

CONTENT = "content"


@dataclass(frozen=True)
class Prediction:
    """Predictions of one row of the table on the evaluated clips of one task.

    Parameters
    ----------
    question : Question
        Task and measures.
    clips, groups : tuple of str
        Id and group of each clip. The groups of a retrieval are the tracks.
    task : Task, optional
        Kind and names of the outputs; None for a retrieval.
    truth : ndarray
        Encoded targets, as `patchifier.tasks.encode_targets` gives them; empty for a retrieval.
    majority : ndarray
        Predictions (n, C) of the most frequent label or the mean, which is chance; empty for a retrieval.
    runs : tuple of ndarray
        Predictions (n, C) of each run of the row. For a retrieval, whether each clip has a hit at each depth, (n, depths).
    """

    question: Question
    clips: tuple[str, ...]
    groups: tuple[str, ...]
    task: Task | None
    truth: np.ndarray
    majority: np.ndarray
    runs: tuple[np.ndarray, ...]

    def scores(self) -> list[EncoderScore]:
        """Return a score for each measure."""
        if self.task is None:
            return [
                EncoderScore(
                    self.question,
                    name,
                    self.groups,
                    chance_of_hit(self.groups, depth_of(name)),
                    tuple(mean_of(run[:, place].astype(float)) for run in self.runs),
                )
                for place, name in enumerate(self.question.measures)
            ]
        ones = np.ones((1, len(self.groups)))
        return [
            EncoderScore(
                self.question,
                name,
                self.groups,
                float(measure(name, self.task, self.truth, self.majority)(ones)[0]),
                tuple(measure(name, self.task, self.truth, run) for run in self.runs),
            )
            for name in self.question.measures
        ]


def depth_of(name: str) -> int:
    """Return the number of neighbours of a measure such as "recall@10"."""
    return int(name.removeprefix("recall@"))


def write(
    path: Path,
    predictions: Mapping[str, Sequence[Prediction]],
    side: str,
    notes: Sequence[str] = (),
    runs: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the predictions of all rows into one npz file. What the rows of a task share is stored once."""
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for row, given in predictions.items():
        for each in given:
            name = each.question.name
            described.setdefault(name, {"task": each.task and asdict(each.task), "rows": {}})
            described[name]["rows"][row] = len(each.runs)
            arrays[f"{name}/clips"] = np.array(each.clips)
            arrays[f"{name}/groups"] = np.array(each.groups)
            arrays[f"{name}/truth"] = each.truth
            arrays[f"{name}/majority"] = each.majority
            arrays |= {f"{name}/{row}/{place}": run for place, run in enumerate(each.runs)}
    content = {
        "side": side,
        "rows": list(predictions),
        "tasks": described,
        "notes": list(notes),
        "runs": dict(runs or {}),
    }
    arrays[CONTENT] = np.array(json.dumps(content))
    with replaced_file(path) as new, new.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read(path: Path) -> tuple[dict[str, list[Prediction]], dict[str, Any]]:
    """Read the file that `write` wrote; return the predictions of all rows, and side, notes and runs.

    Raises
    ------
    RequestError
        If the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        content = json.loads(str(arrays.pop(CONTENT)))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{path} holds no predictions, expected the file predictions.npz that judge.py wrote ({error})."
        ) from None
    found: dict[str, list[Prediction]] = {row: [] for row in content["rows"]}
    for question in (*QUESTIONS, *DIAGNOSTICS):
        name = question.name
        if name not in content["tasks"]:
            continue
        task = content["tasks"][name]["task"]
        shared = Prediction(
            question,
            tuple(arrays[f"{name}/clips"].tolist()),
            tuple(arrays[f"{name}/groups"].tolist()),
            task and Task(task["kind"], tuple(task["names"]), task["metric"]),
            arrays[f"{name}/truth"],
            arrays[f"{name}/majority"],
            (),
        )
        for row, count in content["tasks"][name]["rows"].items():
            runs = tuple(arrays[f"{name}/{row}/{place}"] for place in range(count))
            found[row].append(replace(shared, runs=runs))
    return found, content


def outcome_of(path: Path) -> Outcome:
    """Bootstrap and compare the rows of a file of predictions, as judge.py does."""
    found, content = read(path)
    given = {
        row: [score for each in parts for score in each.scores()] for row, parts in found.items()
    }
    return replace(
        summarise(given, content["side"], content["notes"]),
        column_differences=column_differences(given),
        runs=content["runs"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path, help="file predictions.npz that judge.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    given = parser.parse_args(arguments)
    try:
        found = outcome_of(given.predictions)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    write_outcome(found, given.out)
    print(found.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())

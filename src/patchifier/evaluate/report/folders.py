"""Run folders, read as far as they go: facts, columns, what is missing, reconstructions."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.config_names import with_new_names
from patchifier.io import listed, parse_json, read_text

Row = Mapping[str, Any]

TEXTS = ("encoder", "method", "metric", "subset", "condition", "first", "second")  # columns
# of fine-tuning, in the order of the paper
METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")


@dataclass(frozen=True)
class RunFolder:
    """One run folder, read as far as it goes."""

    path: Path
    label: str
    facts: dict[str, Any]
    config: dict[str, Any]
    missing: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What made the run; guessed from its folders where ``run.json`` does not say."""
        stages = any((self.path / stage).is_dir() for stage in ("stage-one", "stage-two"))
        return str(self.facts.get("kind") or ("pretrain" if stages else "finetune"))

    @property
    def metric(self) -> str:
        """The score of a fine-tuning run."""
        return str(self.facts.get("metric", "accuracy"))

    @property
    def dataset(self) -> str:
        """Name of the data set; empty for runs of older versions."""
        return str(self.facts.get("dataset") or "")

    @property
    def task(self) -> str:
        """Kind and names of a fine-tuning run's task, as text."""
        task = get_part(self.facts, "task")
        names = [str(name) for name in task.get("names", [])]
        return f"{task.get('kind', '')}: {listed(names, 8)}" if names else ""

    @property
    def test(self) -> str:
        """Task and split as text.

        Only scores that agree in this and in the number of clips can be compared.
        """
        return "; ".join(part for part in (self.task, str(self.facts.get("split") or "")) if part)


def started_from(run: RunFolder, pretrained: RunFolder) -> bool:
    """Whether a fine-tuning run may have started from the model of a pre-training run.

    Runs of older versions do not say which weights they have made: of these, models of as many
    parameters are taken to be the same.
    """
    for name in ("model weights", "parameters"):
        if name in run.facts and name in pretrained.facts:
            return bool(run.facts[name] == pretrained.facts[name])
    return True


def find_folders(root: Path) -> Iterator[Path]:
    """Run folders and folders of a demo at or below a path.

    A results.json anywhere inside a run belongs to one of its methods or to its baselines.
    """
    for path in sorted(root.rglob("*.json")):
        above = [folder for folder in path.parent.parents if folder.is_relative_to(root)]
        belongs = any((folder / "run.json").exists() for folder in above)
        if path.name == "run.json" or (path.name == "results.json" and not belongs):
            yield path.parent


def read_json(path: Path, problems: list[str], *, kind: type = dict) -> Any:
    """Read a JSON object, or a list; one that cannot be read is empty and named in the problems."""
    try:
        value = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}.")
        return kind()
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else "a JSON list"
        problems.append(
            f"{path.parent.name}/{path.name} holds {type(value).__name__}, expected {expected}."
        )
        return kind()
    return value


def read_results(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read ``results.json``; one of another form is empty and named among the problems."""
    results = read_json(path, problems)
    if not results:
        return {}
    parts = {name: results.get(name) or [] for name in ("rows", "differences", "notes")}
    notes = parts["notes"]
    sound = _are_rows(parts["rows"], "encoder") and _are_rows(parts["differences"], "second")
    if sound and isinstance(notes, list) and all(isinstance(note, str) for note in notes):
        return results | parts
    problems.append(
        f"{path.parent.name}/{path.name} has other contents than results of a run: "
        "run its command again."
    )
    return {}


def _are_rows(value: Any, name: str) -> bool:
    """Whether a value is a list of objects with text under `name`; others hold text or None."""
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and isinstance(row.get(name), str)
        and all(isinstance(row.get(text, ""), str) for text in TEXTS)
        for row in value
    )


def read_settings(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read the config of a run by the names of today; empty, with a problem, if it is damaged."""
    try:
        return with_new_names(read_json(path, problems))
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return {}


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file by header name.

    The last row of a step counts, and a line still being written is left out.
    """
    if not path.exists():
        return {}
    lines = read_text(path, errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    by_step = {
        row.get("step"): row
        for row in csv.DictReader(whole)
        if math.isfinite(to_number(row.get("step")))
    }
    names = [name for name in next(iter(by_step.values()), {}) if name]
    return {
        name: np.array([to_number(row.get(name)) for row in by_step.values()]) for name in names
    }


def get_part(mapping: Row, name: str) -> dict[str, Any]:
    """Get a group of facts, empty where there is none."""
    value = mapping.get(name)
    return value if isinstance(value, dict) else {}


def to_number(value: object) -> float:
    """Read a number, NaN where there is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def read_run(path: Path, base: Path, problems: list[str]) -> RunFolder:
    """Read a run folder; its ``folder`` is named relative to ``base``."""
    facts = read_json(path / "run.json", problems)
    bare = facts.get("kind") == "compare"  # its settings are among the facts
    config = {} if bare else read_settings(path / "config.json", problems)
    run = RunFolder(path, str(facts.get("name") or path.name), facts, config, missing=())
    missing = _missing_state(run)
    if run.kind == "pretrain":
        missing += _missing_pretrain(run)
    elif run.kind == "finetune":
        missing += _missing_finetune(run)
    elif run.kind == "compare" and not (path / "results.json").exists():
        missing.append("no result yet")
    facts = {**facts, "folder": str(path.relative_to(base))}
    return replace(run, missing=tuple(missing), facts=facts)


def _missing_state(run: RunFolder) -> list[str]:
    state = run.facts.get("state", "unknown")
    known = {
        "running": "it is still running, or was killed",
        "interrupted": "it was interrupted and can be resumed",
        "failed": "it failed",
    }
    if state == "finished":
        return []
    error = str(run.facts.get("error") or "")
    return [f"{known.get(state, f'its state is {state!r}')}{': ' if error else ''}{error}"]


def _missing_pretrain(run: RunFolder) -> list[str]:
    stages = get_part(run.config, "pretrain").get("stages", "both")
    missing = []
    for stage in [f"stage-{name}" for name in ("one", "two") if stages in (name, "both")]:
        steps, checks = (
            read_columns(run.path / stage / name) for name in ("metrics.csv", "validation.csv")
        )
        if not (steps and checks):
            missing.append(f"{stage}: no {'validation' if steps else 'step'} yet")
    if stages != "one" and not (run.path / "stage-two" / "reconstructions.safetensors").exists():
        missing.append("stage-two: no reconstructions yet")
    return missing


def _missing_finetune(run: RunFolder) -> list[str]:
    missing, untested = [], []
    asked = run.facts.get("methods") or METHODS  # runs of older versions do not say
    absent = [name for name in METHODS if name in asked and not (run.path / name).is_dir()]
    for method in METHODS:
        folder = run.path / method
        if folder.is_dir() and not read_columns(folder / "validation.csv"):
            missing.append(f"{method}: no validation yet")
        if folder.is_dir() and not (folder / "results.json").exists():
            untested.append(f"{method}: no test score yet")
    if absent and run.facts.get("state") != "finished":
        untested.append(f"without {', '.join(absent)} so far")
    return missing + untested


def method_rows(run: RunFolder, method: str, problems: list[str]) -> list[dict[str, Any]]:
    """Read the test scores of one method."""
    path = run.path / method / "results.json"
    return read_results(path, problems).get("rows", []) if path.exists() else []


def read_reconstructions(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read ``reconstructions.safetensors``.

    Returns
    -------
    arrays : dict of ndarray
        ``original`` (N, M, W) float32, and for each ratio such as 0.75 ``masked_0.75`` (N,) uint8
        and ``reconstructed_0.75`` (N, M, W).
    facts : dict of str
        ``clip``, ``title``, ``frame_s`` in seconds, ``scale`` (value / scale is dB), ``band_hz``
        (JSON), ``silence``.

    Raises
    ------
    RequestError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"cannot read reconstructions from {path}: {error}. Expected the file that stage II "
            "writes."
        ) from error

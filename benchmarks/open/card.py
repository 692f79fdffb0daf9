"""What a released model's card says: what it heard, what it cost, how good it is, what it is bad at."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outcome import lines

from patchifier.embed import Embedder

PAPER_CLIPS = 1_000_000 * 32  # two stages of 1,000 epochs over 16,000 clips in batches of 32
NOT_STATED = "not stated"
PLACE = re.compile(r"(?<![^\s'\"=,:(])~?/(?!/)[^\s'\",)]*")


@dataclass(frozen=True)
class Heard:
    """Rows of a pre-training list.

    Parameters
    ----------
    name : str
        Of the list's file.
    rows : sequence of dict
        With seconds, kind, licence and group.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def hours(self) -> float:
        """Of all rows."""
        return sum(row["seconds"] for row in self.rows) / 3600

    def by(self, *what: Any) -> list[tuple[tuple[str, ...], float]]:
        """Hours of rows that are alike, the most first; each of `what` takes a row and gives a word."""
        found: Counter[tuple[str, ...]] = Counter()
        for row in self.rows:
            found[tuple(each(row) for each in what)] += row["seconds"] / 3600
        return found.most_common()


@dataclass(frozen=True)
class Cost:
    """What training took, all runs that led to a model together; PAPER_CLIPS are the whole of the paper's."""

    steps: Mapping[str, int]
    clips: int
    minutes: float
    machines: Sequence[str]

    @property
    def share(self) -> float:
        """Of the clips that the paper's two stages hear."""
        return self.clips / PAPER_CLIPS


def portable(value: Any) -> Any:
    """The same facts without the places of one machine: of an absolute path the last two names stay."""
    if isinstance(value, str):
        return PLACE.sub(lambda found: "/".join(found[0].strip("/").split("/")[-2:]), value)
    if isinstance(value, Mapping):
        return {key: portable(each) for key, each in value.items()}
    return [portable(each) for each in value] if isinstance(value, list | tuple) else value


def write_card(
    name: str,
    embedder: Embedder,
    words: Mapping[str, Any],
    heard: Heard,
    cost: Cost,
    table: str,
    masked: Sequence[str],
    facts: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    """The whole card."""
    config, count = (
        embedder.config,
        sum(parameter.numel() for parameter in embedder.model.parameters()),
    )
    made_of = (
        f"{config.embed.n_components} principal components of " if config.embed.n_components else ""
    )
    behind = (
        f", and behind them {', '.join(config.embed.summaries)} of the window"
        if config.embed.summaries
        else ""
    )
    return "\n".join([
        "---", "license: apache-2.0", "library_name: patchifier", "tags: [music, audio, self-supervised]", "---", "",
        f"# {name}", "", words["summary"], "",
        f"A music encoder with {count:,} parameters, pre-trained without labels, released {facts['date']}. It reads mono audio at "
        f"{config.spectrogram.sample_rate:,} Hz and gives vectors of {embedder.size} numbers ({made_of}{config.embed.pooling} of layers "
        f"{', '.join(map(str, config.embed.layers))}{behind}).", "",
        "```python", "import patchifier", "", f'model = patchifier.load("{name}")', 'vector = model.embed("song.mp3")', "```", "",
        "The weights are Apache-2.0. Matrices are stored in half precision and computed with in float32.", "",
        "## What it heard", "", *heard_lines(heard, facts), "",
        "## Compute", "", *cost_lines(cost), "",
        "## Open benchmark", "", table, "",
        *masked,
        "## What it is bad at", "", *(f"- {text}" for text in words["weak"]), "",
        "## Fair and unfair tests", "", "Fair:", "", *(f"- {text}" for text in words["fair"]), "",
        "Unfair:", "", *(f"- {text}" for text in words["unfair"]), "",
        "## How it was made", "", *fact_lines(facts, runs),
    ]) + "\n"  # fmt: skip


def heard_lines(heard: Heard, facts: Mapping[str, Any]) -> list[str]:
    """Hours by kind, by licence, by package."""
    clips = facts.get("clips") or {}
    sides = (
        f" Of these {clips.get('train', 0):,} trained and {clips.get('validation', 0):,} were held out."
        if clips
        else ""
    )
    tables = {
        "kind": heard.by(lambda row: row["kind"]),
        "licence": heard.by(lambda row: row["kind"], lambda row: row["licence"] or NOT_STATED),
        "package": Heard(heard.name, [row for row in heard.rows if row["kind"] == "recordings"]).by(
            lambda row: row["group"].split("/")[1]
        ),
    }
    return [
        f"{heard.hours:.1f} hours in {len(heard.rows):,} clips, the list `{heard.name}` of `benchmarks/open/`.{sides} Every track that the bundled clips are "
        "cut from is left out, and so is all that validates or tests in the open benchmark, scores by their notes too: checked when this card was written.", "",
        *lines([{"kind": kind, "hours": f"{hours:.2f}"} for (kind,), hours in tables["kind"]], ["kind", "hours"]), "",
        "What is no recording was rendered for this by FluidR3 (MIT): old music that carries no terms, accompaniments over charts of our own, notes drawn by "
        "chance. Licences of recordings are those that their packages state:", "",
        *lines([{"kind": kind, "licence": licence, "hours": f"{hours:.2f}"} for (kind, licence), hours in tables["licence"]], ["kind", "licence", "hours"]), "",
        "Recordings by Debian package:", "",
        *lines([{"package": package, "hours": f"{hours:.2f}"} for (package,), hours in tables["package"]], ["package", "hours"]),
    ]  # fmt: skip


def cost_lines(cost: Cost) -> list[str]:
    """Machine, steps, clips, minutes, and how much of the paper's that is."""
    steps = ", ".join(f"{count:,} ({stage})" for stage, count in cost.steps.items())
    return [
        f"{'; '.join(cost.machines)}: {cost.minutes:,.1f} minutes. Steps: {steps}; {cost.clips:,} clips heard, {100 * cost.share:.2g} % of those "
        "in the paper's 1,000,000 steps of 32."
    ]


def masked_lines(rows: Sequence[Mapping[str, str]], side: str) -> list[str]:
    """A section about masked patches: errors beside the references, the model minus each, and what it draws, by family."""
    differences = [name for name in rows[0] if name.startswith("model - ")]
    drawn = [name for name in rows[0] if name.startswith(("variance", "onset"))]
    errors = [name for name in rows[0] if name not in {"clips", "number", *differences, *drawn}]
    return [
        "## Masked patches", "",
        f"Three quarters of the patches of each clip are masked, the {side} side of the open benchmark, four masks a clip. Mean squared error of masked "
        "patches in (dB / 100)²; `visible shuffled` is the model on the same patches with the visible ones in another order, `band means` are the masked "
        "patches' own levels, which nobody can know (`patchifier.train.references` defines all of them).", "",
        *lines(rows, ["clips", "number", *errors]), "",
        "The model minus each of them, paired, with 95 % intervals over groups; below 0 the model is better:", "",
        *lines(rows, ["clips", *differences]), "",
        "Shares of the variance that the model draws, inside patches and between them, and onsets drawn against those of the original:", "",
        *lines(rows, ["clips", *drawn]), "",
    ]  # fmt: skip


def fact_lines(facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every fact that training left, of the model and, where it is another, of each run that led to it."""
    rows = list(facts.items())
    for number, run in enumerate(runs, 1):
        rows += [
            (f"run {number}, {name}", value)
            for name, value in run.items()
            if facts.get(name) != value
        ]
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")

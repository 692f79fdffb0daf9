"""Card of a released model: training data, cost, results, limits, fair tests."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groups import CODED
from outcome import lines

from patchifier.cli.models import LABELS
from patchifier.config import Config
from patchifier.embed import Embedder
from patchifier.windows import window_patches

PAPER_CLIPS = 1_000_000 * 32  # two stages of 1,000 epochs over 16,000 clips in batches of 32
NOT_STATED = "not stated"
PLACE = re.compile(r"(?<![^\s'\"=,:(])~?/(?!/)[^\s'\",)]*")


@dataclass(frozen=True)
class TrainingData:
    """Rows of a list for pre-training.

    Parameters
    ----------
    name : str
        Name of the list's file.
    rows : sequence of dict
        Each with seconds, kind, licence and group.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def hours(self) -> float:
        """Hours of distinct music: of all rows but coded copies."""
        return sum(row["seconds"] for row in self.rows if row["kind"] != CODED) / 3600

    @property
    def coded_hours(self) -> float:
        """Hours of coded copies of recordings."""
        return sum(row["seconds"] for row in self.rows if row["kind"] == CODED) / 3600

    def by(self, *keys: Any) -> list[tuple[tuple[str, ...], float]]:
        """Hours of each combination of keys, the most first. A key is a function of a row that gives a word."""
        found: Counter[tuple[str, ...]] = Counter()
        for row in self.rows:
            found[tuple(key(row) for key in keys)] += row["seconds"] / 3600
        return found.most_common()


@dataclass(frozen=True)
class Cost:
    """Cost of all runs that led to a model; PAPER_CLIPS is that of the whole paper."""

    steps: Mapping[str, int]
    clips: int
    minutes: float
    machines: Sequence[str]

    @property
    def share(self) -> float:
        """Share of the clips of the paper's two stages."""
        return self.clips / PAPER_CLIPS


def portable(value: Any) -> Any:
    """Return the value without the paths of one machine: the last two names of an absolute path stay."""
    if isinstance(value, str):
        return PLACE.sub(lambda found: "/".join(found[0].strip("/").split("/")[-2:]), value)
    if isinstance(value, Mapping):
        return {key: portable(each) for key, each in value.items()}
    return [portable(each) for each in value] if isinstance(value, list | tuple) else value


def write_card(
    name: str,
    embedder: Embedder,
    texts: Mapping[str, Any],
    data: TrainingData,
    cost: Cost,
    table: str,
    masked: Sequence[str],
    facts: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    """Return the whole card."""
    config, count = (
        embedder.config,
        embedder.network.parameter_count,
    )
    taught = taught_by(config)
    limits = [text.format(size=embedder.size, window_s=window_s(config)) for text in texts["weak"]]
    tags = "music, audio" if taught else "music, audio, self-supervised"
    return "\n".join([
        "---", "license: apache-2.0", "library_name: patchifier", f"tags: [{tags}]", "---", "",
        f"# {name}", "", texts["summary"], "",
        f"A music encoder with {count:,} parameters, pre-trained {taught or 'without labels'}, released {facts['date']}. It reads mono audio at "
        f"{config.spectrogram.sample_rate:,} Hz and gives vectors of {embedder.size:,} numbers ({numbers_of(config)}).", "",
        "```python", "import patchifier", "", f'model = patchifier.load("{name}")', 'vector = model.embed("song.mp3")', "```", "",
        "The weights are Apache-2.0. Matrices are stored in half precision and computed with in float32.", "",
        "## Training data", "", *data_lines(data, facts), "",
        "## Compute", "", *cost_lines(cost), "",
        "## Open benchmark", "", table, "",
        *masked,
        "## Limits", "", *(f"- {text}" for text in limits), "",
        "## Fair and unfair tests", "", "Fair:", "", *(f"- {text}" for text in texts["fair"]), "",
        "Unfair:", "", *(f"- {text}" for text in texts["unfair"]), "",
        "## How it was made", "", *fact_lines(facts, runs),
    ]) + "\n"  # fmt: skip


def numbers_of(config: Config) -> str:
    """Return what the numbers of a vector are, in words, in their order."""
    embed = config.embed
    components = f"{embed.n_components} principal components of " if embed.n_components else ""
    similar = (
        f"{embed.n_similarity} principal components of what is predicted of another model's vectors"
    )
    descriptors = f"the descriptors {', '.join(embed.summaries)} of the window"
    parts = {
        similar: embed.n_similarity,
        f"{components}{embed.pooling} of layers {', '.join(map(str, embed.layers))}": True,
        descriptors: embed.summaries,
    }
    return ", then ".join(words for words, there in parts.items() if there)


def window_s(config: Config) -> float:
    """Seconds of a window."""
    return window_patches(config)[0] * config.model.patch_frames * config.spectrogram.frame_s


def taught_by(config: Config) -> str:
    """Return what taught a model beside the sound itself, in words; empty for a self-supervised one."""
    given = {
        "with the notes of rendered music as targets": config.pretrain.note_labels,
        "with vectors of another model as targets": config.pretrain.teacher_features,
    }
    return " and ".join(words for words, folder in given.items() if folder)


def data_lines(data: TrainingData, facts: Mapping[str, Any]) -> list[str]:
    """Hours by kind, by licence and by package."""
    clips = facts.get("clips") or {}
    sides = (
        f" Of these {clips.get('train', 0):,} trained and {clips.get('validation', 0):,} were held out."
        if clips
        else ""
    )
    tables = {
        "kind": data.by(lambda row: row["kind"]),
        "licence": data.by(lambda row: row["kind"], lambda row: row["licence"] or NOT_STATED),
        "package": TrainingData(
            data.name, [row for row in data.rows if row["kind"] == "recordings"]
        ).by(lambda row: row["group"].split("/")[1]),
    }
    copies = [row for row in data.rows if row["kind"] == CODED]
    coded = (
        " Coded recordings are copies of half of the recordings in mp3 at 24 to 64 kbit/s, under the licences of their originals. Their "
        f"{data.coded_hours:.1f} hours are no further music and are not counted above."
    )
    return [
        f"{data.hours:.1f} hours in {len(data.rows) - len(copies):,} clips{f' and {len(copies):,} coded copies' * bool(copies)}, the list `{data.name}` of `benchmarks/open/`.{sides} The tracks of the bundled clips are not in "
        "it, and neither is anything of the validation and test sides of the open benchmark; scores were "
        "compared by their notes. This was checked when the card was written." + coded * bool(copies), "",
        *lines([{"kind": kind, "hours": f"{hours:.2f}"} for (kind,), hours in tables["kind"]], ["kind", "hours"]), "",
        f"Everything but recordings {'and their copies ' if copies else ''}was rendered for this by free SoundFonts (FluidR3 and MuseScore_General, both MIT): old music without terms, accompaniments "
        "over our own chord charts, and notes or songs drawn at random. Licences of recordings are those that their packages state:", "",
        *lines([{"kind": kind, "licence": licence, "hours": f"{hours:.2f}"} for (kind, licence), hours in tables["licence"]], ["kind", "licence", "hours"]), "",
        "Recordings by Debian package:", "",
        *lines([{"package": package, "hours": f"{hours:.2f}"} for (package,), hours in tables["package"]], ["package", "hours"]),
    ]  # fmt: skip


def cost_lines(cost: Cost) -> list[str]:
    """Machine, steps, clips, minutes, and the share of the paper's training."""
    steps = ", ".join(f"{count:,} ({stage})" for stage, count in cost.steps.items())
    return [
        f"{'; '.join(cost.machines)}: {cost.minutes:,.1f} minutes. Steps: {steps}; {cost.clips:,} clips, {100 * cost.share:.2g} % of those "
        "in the paper's 1,000,000 steps of 32."
    ]


def masked_lines(rows: Sequence[Mapping[str, str]], side: str) -> list[str]:
    """Section about masked patches, by family: errors, references, differences, and what the model draws."""
    differences = [name for name in rows[0] if name.startswith("model - ")]
    drawn = [name for name in rows[0] if name.startswith(("variance", "onset"))]
    errors = [name for name in rows[0] if name not in {"clips", "number", *differences, *drawn}]
    return [
        "## Masked patches", "",
        f"Three quarters of the patches of each clip are masked, with four masks for each clip of the {side} side of the open benchmark. The figures are mean "
        "squared errors of masked patches in (dB/100)². `visible shuffled` is the model with the visible patches in another order. `band means` are the "
        "masked patches' own levels, which no model knows. `patchifier.train.references` defines all of them.", "",
        *lines(rows, ["clips", "number", *errors]), "",
        "The model minus each of them, paired, with 95 % intervals over groups; below 0 the model is better:", "",
        *lines(rows, ["clips", *differences]), "",
        "Shares of the original's variance that the model draws, inside patches and between them, and the F-measure of its onsets:", "",
        *lines(rows, ["clips", *drawn]), "",
    ]  # fmt: skip


def fact_lines(facts: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Facts of the model, and facts of each run that led to it where they differ."""
    rows = [(LABELS.get(name, name), value) for name, value in facts.items()]
    for number, run in enumerate(runs, 1):
        rows += [
            (f"run {number}, {LABELS.get(name, name)}", value)
            for name, value in run.items()
            if facts.get(name) != value
        ]
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")

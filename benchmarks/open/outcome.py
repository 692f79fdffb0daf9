"""Table and figure of the scores."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from measures import (
    DIAGNOSTICS,
    FAMILIES,
    FRAMES,
    QUESTIONS,
    EncoderScore,
    differences,
    family_draws,
    interval,
)

from patchifier.io import replaced_file, write_json, write_rows

ENDPOINT = "endpoint"
CHANCE = "chance"


@dataclass(frozen=True)
class Outcome:
    """Content of the table and of the figure.

    Parameters
    ----------
    side : "valid" or "test"
        Side that was evaluated.
    scores : list of dict
        A row for each encoder, task and measure: plain score with its interval, chance, and the score between chance and ceiling.
    families : list of dict
        A row for each encoder and family, and for the endpoint: mean of normalised scores with its interval.
    differences : list of dict
        The first encoder against each other one on the endpoint and in each family, paired.
    column_differences : list of dict
        The first encoder against each other one in each column, paired; p corrected by Holm over all of these rows.
    notes : list of str
        Notes below the table.
    runs : dict
        Encoders that each row is the mean of, as the command named them.
    """

    side: str
    scores: list[dict[str, Any]]
    families: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    column_differences: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)

    def encoders(self) -> list[str]:
        """Names of all rows."""
        return list(dict.fromkeys(row["encoder"] for row in self.scores))

    def columns(self) -> list[tuple[str, str, str]]:
        """(family, task, measure) of each column, in the order of the tasks."""
        present = {(row["family"], row["task"], row["measure"]) for row in self.scores}
        every = [
            (question.family, question.task, name)
            for question in (*QUESTIONS, *DIAGNOSTICS, *FRAMES)
            for name in question.measures
        ]
        return [column for column in every if column in present]

    def wide(self) -> list[dict[str, str]]:
        """A row for each encoder, a column for each figure, in per cent. The best of a column is not marked, since intervals overlap."""
        summary = {(row["encoder"], row["family"]): row for row in self.families}
        single = {
            (row["encoder"], row["family"], row["task"], row["measure"]): row for row in self.scores
        }
        chances = {
            (row["family"], row["task"], row["measure"]): row["chance"] for row in self.scores
        }
        rows = [
            {"encoder": CHANCE}
            | dict.fromkeys((ENDPOINT, *FAMILIES), "0.0")
            | {title(*column): f"{100 * chances[column]:.1f}" for column in self.columns()}
        ]
        for name in self.encoders():
            row = {"encoder": name}
            for place in (ENDPOINT, *FAMILIES):
                found = summary.get((name, place))
                spread = (
                    f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
                    if found and place == ENDPOINT
                    else ""
                )
                row[place] = f"{100 * found['value']:.1f}{spread}" if found else ""
            for column in self.columns():
                cell = single.get((name, *column))
                row[title(*column)] = f"{100 * cell['value']:.1f}" if cell else ""
            rows.append(row)
        return rows

    def markdown(self) -> str:
        """Tables of Markdown: endpoint and families, differences, then the columns of each family."""
        wide = self.wide()
        parts = [
            f"Open benchmark, {self.side} side. Per cent; the endpoint and the families are placed between chance (0) and ceiling (100).",
            "",
        ]
        parts += lines(
            [row for row in wide if any(row[family] for family in FAMILIES)],
            ["encoder", ENDPOINT, *FAMILIES],
        )
        parts += (
            [
                "",
                "Paired differences from the first, in points; p of the endpoint corrected by Holm.",
                "",
                *self.difference_lines(),
            ]
            if self.differences
            else []
        )
        for family in FAMILIES:
            titles = [title(*column) for column in self.columns() if column[0] == family]
            if titles:
                found = lines(
                    [row for row in wide if any(row[each] for each in titles)], ["encoder", *titles]
                )
                parts += [
                    "",
                    found[0].replace(f"{family} ", "").replace("encoder", family),
                    *found[1:],
                ]
        if self.column_differences:
            parts += ["", *self.column_lines()]
        return "\n".join([*parts, "", *self.notes]) + "\n"

    def difference_lines(self) -> list[str]:
        """The first encoder minus each other one, on the endpoint and in each family."""
        rows: dict[str, dict[str, str]] = {}
        for found in self.differences:
            row = rows.setdefault(
                found["second"], {"encoders": f"{found['first']} - {found['second']}"}
            )
            row[found["family"]] = (
                f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
            )
            row |= {"p": f"{found['p_holm']:.3g}"} if found["family"] == ENDPOINT else {}
        places = [
            place
            for place in (ENDPOINT, "p", *FAMILIES)
            if any(place in row for row in rows.values())
        ]
        return lines(list(rows.values()), ["encoders", *places])

    def column_lines(self) -> list[str]:
        """The first encoder minus each other one in each column of the endpoint; a star where p is below .05 after Holm."""
        rows: dict[str, dict[str, str]] = {}
        for found in self.column_differences:
            name = title(found["family"], found["task"], found["measure"])
            sure = "*" if found["p_holm"] is not None and found["p_holm"] < 0.05 else ""
            rows.setdefault(name, {"column": name})[found["second"]] = (
                f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]{sure}"
            )
        first = self.column_differences[0]["first"]
        others = dict.fromkeys(found["second"] for found in self.column_differences)
        return [
            f"{first} minus each other row in each column, in points of the column's measure, paired. A star: p < .05, corrected by Holm over all cells.",
            "",
            *lines(list(rows.values()), ["column", *others]),
        ]


def title(family: str, task: str, measure: str) -> str:
    """Return the title of a column."""
    return f"{family} {task} ({measure})"


def lines(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    """A table of Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return head + [
        "| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in rows
    ]


def summarise(
    answers: Mapping[str, Sequence[EncoderScore]], side: str, notes: Sequence[str] = ()
) -> Outcome:
    """Bootstrap every encoder on the same draws, family by family, and compare the first with each other one.

    The endpoint is the mean over the four families of the mean over a family's tasks of scores between chance (0) and a ceiling of 1.
    An encoder without a score on every task of the endpoint has no endpoint. For a row of several runs a note gives the endpoint of each.
    """
    scores = [_score(name, answer) for name, given in answers.items() for answer in given]
    draws: dict[str, dict[str, np.ndarray]] = {place: {} for place in (ENDPOINT, *FAMILIES)}
    each_run = []
    for name, given in answers.items():
        counted = {
            family: [
                answer
                for answer in given
                if answer.question in QUESTIONS and answer.question.family == family
            ]
            for family in FAMILIES
        }
        for seed, family in enumerate(FAMILIES):
            if {answer.question for answer in counted[family]} == {
                question for question in QUESTIONS if question.family == family
            }:
                draws[family][name], _ = family_draws(counted[family], seed)
        if all(name in draws[family] for family in FAMILIES):
            draws[ENDPOINT][name] = np.mean([draws[family][name] for family in FAMILIES], axis=0)
            each_run += [_each_run(name, list(counted.values()))] if len(given[0].runs) > 1 else []
    families = [
        _summary(name, place, found[name]) for place, found in draws.items() for name in found
    ]
    first = next(iter(answers))
    compared = [
        {"family": place} | row
        for place, found in draws.items()
        if first in found
        for row in differences(first, found)
    ]
    return Outcome(side, scores, families, compared, notes=list(dict.fromkeys([*each_run, *notes])))


def _each_run(name: str, families: Sequence[Sequence[EncoderScore]]) -> str:
    """Return a note with the endpoint of each run."""
    values = []
    for run in range(len(families[0][0].runs)):
        alone = [
            [replace(answer, runs=(answer.runs[run],)) for answer in family] for family in families
        ]
        values.append(np.mean([family_draws(family, 0, draws=0)[0][0] for family in alone]))
    return f"{name} is the mean of {len(values)} runs; endpoints one by one: {', '.join(f'{100 * value:.1f}' for value in values)}."


def _summary(name: str, family: str, draws: np.ndarray) -> dict[str, Any]:
    value, low, high = interval(draws)
    return {"encoder": name, "family": family, "value": value, "low": low, "high": high}


def _score(name: str, answer: EncoderScore) -> dict[str, Any]:
    _, plain = family_draws([answer], 0)
    value, low, high = interval(next(iter(plain.values())))
    return {
        "encoder": name, "family": answer.question.family, "task": answer.question.task, "measure": answer.measure, "value": value, "low": low, "high": high,
        "chance": answer.chance, "normalised": (value - answer.chance) / (1 - answer.chance), "n": len(answer.groups), "groups": len(set(answer.groups)),
    }  # fmt: skip


# --- files ---


def write_outcome(outcome: Outcome, out: Path) -> None:
    """Write scores.csv, families.csv, differences.csv, columns.csv, table.csv, table.md, results.json and figure.png."""
    write_rows(out / "scores.csv", outcome.scores)
    write_rows(out / "families.csv", outcome.families)
    for name, rows in (
        ("differences.csv", outcome.differences),
        ("columns.csv", outcome.column_differences),
    ):
        (out / name).unlink(missing_ok=True)  # of an earlier evaluation in this folder
        if rows:
            write_rows(out / name, rows)
    with (
        replaced_file(out / "table.csv") as new,
        new.open("w", newline="", encoding="utf-8") as stream,
    ):
        wide = outcome.wide()
        table = csv.DictWriter(stream, list(wide[0]))
        table.writeheader()
        table.writerows(wide)
    with replaced_file(out / "table.md") as new:
        new.write_text(outcome.markdown(), encoding="utf-8")
    write_json(out / "results.json", asdict(outcome))
    draw_figure(outcome, out / "figure.png")


def draw_figure(outcome: Outcome, path: Path) -> None:
    """A panel for the endpoint and one for each family: a dot with its interval for each encoder, chance at 0, the ceiling at 100."""
    from patchifier.evaluate.report.drawing import new_figure, save_figure

    by_family = {(row["family"], row["encoder"]): row for row in outcome.families}
    names = [
        name
        for name in outcome.encoders()
        if any((family, name) in by_family for family in FAMILIES)
    ]
    figure = new_figure(1.3 + 0.34 * len(names))
    axes = figure.subplots(1, 1 + len(FAMILIES), sharey=True, sharex=True)
    for axis, family in zip(axes, (ENDPOINT, *FAMILIES), strict=True):
        for place, name in enumerate(reversed(names)):
            row = by_family.get((family, name))
            if row is None:
                continue
            value, low, high = (100 * row[key] for key in ("value", "low", "high"))
            axis.plot(
                [low, high], [place, place], color="#2f5fa8", linewidth=2, solid_capstyle="butt"
            )
            axis.plot(value, place, "o", color="#1c1433", markersize=5)
            axis.annotate(
                f"{value:.0f}",
                (value, place),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axis.axvline(0, color="0.6", linewidth=1)
        axis.set_title(family, fontsize=10, fontweight="bold" if family == ENDPOINT else "normal")
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set_ylim(-0.6, len(names) - 0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].set_xlabel(
        f"0: chance, 100: ceiling; 95 % intervals by bootstrap over groups; {outcome.side} side"
    )
    save_figure(figure, path)

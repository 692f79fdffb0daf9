"""Encoders side by side, from the folder of a comparison: table, differences, conditions, figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.evaluate.report.figures import new_figure, tidy, unit_of
from patchifier.evaluate.report.folders import Row, Run, read_json, to_number, write_text
from patchifier.evaluate.report.parts import body, figure_html, wide
from patchifier.evaluate.report.tables import escape, interval_text, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_html(run: Run, problems: list[str], out: Path) -> str:
    """Tell a comparison: what has to be said first, the table with what each encoder costs, a figure, other conditions; Markdown beside."""
    results = (
        read_json(run.path / "results.json", problems)
        if (run.path / "results.json").exists()
        else {}
    )
    rows = [row for row in results.get("rows", []) if isinstance(row, dict)]
    if not rows:
        return ""
    plain = [row for row in rows if not row.get("subset") and not row.get("condition")]
    differences = {row["second"]: row for row in results.get("differences", [])}
    stem = "comparison-" + "".join(
        letter if letter.isalnum() else "-"
        for letter in str(run.facts.get("folder", run.path.name))
    )
    write_text(out / f"{stem}.md", markdown(results, plain, differences))
    notes = "".join(f"<p><b>{escape(note)}</b></p>" for note in results.get("notes", []))
    about = (
        f"{results.get('protocol')} probe".capitalize(),
        results.get("split"),
        f"{plain[0].get('n')} test clips",
        plain[0].get("metric"),
    )
    intro = f"<p>{'; '.join(map(escape, about))}.</p>"
    alt = "Score of each encoder with its 95 % interval."
    over = (
        "lines that hold 95 % of the draws"
        if results.get("protocol") == "few-shot"
        else "95 % intervals over groups"
    )
    caption = f"Scores on the same clips, with {over}. From <b>{escape(run.label)}</b>."
    drawn = figure_html(comparison_figure(plain), stem, out, alt=alt, caption=caption)
    return (
        intro
        + notes
        + _main_table(plain, differences)
        + drawn
        + _subsets_table(rows)
        + _conditions_table(rows)
    )


HEAD = ("encoder", "score", "95 % interval", "first − it", "p (Holm)", "s per s", "parameters")


def _main_table(plain: Sequence[Row], differences: dict[str, Row]) -> str:
    lines = []
    for row in plain:
        told, found = (
            [escape(cell) for cell in cells(row, differences)],
            differences.get(str(row.get("encoder"))),
        )
        if found and to_number(found.get("low")) * to_number(found.get("high")) > 0:
            told[3] = f"<b>{told[3]}</b>"
        lines.append(told)
    words = "First − it: how much better the first encoder is on the same clips, with the paired 95 % interval; bold where that leaves out 0. "
    words += "S per s: seconds for a second of audio, of the encoder alone, from log-mels where it reads those, from files where it reads files."
    return wide(HEAD, f"<tbody class=text>{body(lines)}</tbody>") + f'<p class="small">{words}</p>'


def cells(row: Row, differences: dict[str, Row]) -> list[str]:
    """What a table says of an encoder, in the order of :data:`HEAD`."""
    metric, found = row.get("metric"), differences.get(str(row.get("encoder")))
    against = (
        f"{score_text(found['value'], metric, signed=True)} ({interval_text(found, metric, signed=True)})"
        if found
        else "–"
    )
    cost, size = to_number(row.get("seconds_per_second")), to_number(row.get("parameters"))
    score = score_text(row.get("value"), metric) + (" %" if metric == "accuracy" else "")
    return [
        label(row), score, interval_text(row, metric), against, f"{found['p_holm']:.3f}" if found else "–",
        f"{cost:.1g}" if cost == cost else "–", f"{size:,.0f}" if size == size else "–",
    ]  # fmt: skip


def label(row: Row) -> str:
    """Name of an encoder, long paths from behind, and how many examples it saw where that is the question."""
    name, method = str(row.get("encoder")), str(row.get("method", ""))
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"{name}, {method.partition(', ')[2]}" if method.startswith("few-shot, ") else name


def comparison_headline(run: Run) -> str:
    """Tell in a sentence how the first encoder does, and which other does best."""
    results = (
        read_json(run.path / "results.json", []) if (run.path / "results.json").exists() else {}
    )
    rows = [
        row
        for row in results.get("rows", [])
        if isinstance(row, dict) and not row.get("subset") and not row.get("condition")
    ]
    if not rows:
        return ""
    first, metric = rows[_first(rows)], rows[0].get("metric")
    alike = [
        row for row in rows if row.get("method") == first.get("method")
    ]  # of few-shot, as many examples
    others = [row for row in alike if row.get("encoder") not in (first.get("encoder"), "majority")]
    told = f"On {escape(first.get('n'))} clips of {escape(results.get('dataset'))}, {escape(label(first))} reaches <strong>{_score(first)}</strong>"
    told += f" (95&nbsp;% interval {interval_text(first, metric)}; {escape(metric)})"
    best = max(others, key=lambda row: to_number(row.get("value")), default=None)
    return told + (
        f"; of the others, {escape(label(best))} does best with {_score(best)}." if best else "."
    )


def _subsets_table(rows: Sequence[Row]) -> str:
    parts = [row for row in rows if row.get("subset")]
    if not parts:
        return ""
    lines = [
        [
            escape(cell)
            for cell in (
                row["encoder"],
                row["subset"],
                _score(row),
                interval_text(row, row["metric"]),
                row["n"],
            )
        ]
        for row in parts
    ]
    return "<h3>Parts of the test side</h3>" + wide(
        ("encoder", "part", "score", "95 % interval", "clips"),
        f"<tbody class=text>{body(lines)}</tbody>",
    )


def _conditions_table(rows: Sequence[Row]) -> str:
    """Score under each deformation, an encoder a row."""
    conditions = list(dict.fromkeys(str(row["condition"]) for row in rows if row.get("condition")))
    if not conditions:
        return ""
    by = {(row["encoder"], row.get("condition", "")): row for row in rows if not row.get("subset")}
    encoders = [
        name
        for name in dict.fromkeys(row["encoder"] for row in rows)
        if (name, conditions[0]) in by
    ]
    lines = [
        [escape(name), *(escape(_score(by[name, condition])) for condition in ("", *conditions))]
        for name in encoders
    ]
    told = "<h3>When the test audio is deformed</h3><p>The same probes, trained on clean clips, asked about deformed ones.</p>"
    return told + wide(
        ("encoder", "clean", *map(escape, conditions)), f"<tbody class=text>{body(lines)}</tbody>"
    )


def _score(row: Row) -> str:
    return score_text(row.get("value"), row.get("metric"))


def markdown(results: Row, plain: Sequence[Row], differences: dict[str, Row]) -> str:
    """Lay the comparison out as Markdown."""
    lines = [
        f"{results.get('dataset')}: {results.get('protocol')} probe; {results.get('split')}.",
        "",
        *(f"{note}\n" for note in results.get("notes", [])),
    ]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row, differences)) + " |"
        for row in plain
    ]
    return "\n".join(lines) + "\n"


def comparison_figure(rows: Sequence[Row]) -> "Figure":
    """Score of each encoder with its interval, the first on top."""
    figure = new_figure(0.9 + 0.36 * len(rows))
    axes = figure.subplots()
    factor, name = unit_of(str(rows[0].get("metric")))
    for place, row in enumerate(rows):
        value, low, high = (factor * to_number(row.get(key)) for key in ("value", "low", "high"))
        style: dict[str, Any] = {"color": "#1c1433" if place == _first(rows) else "#8a8a8a"}
        axes.plot([low, high], [-place, -place], linewidth=2.2, **style)
        axes.plot([value], [-place], marker="o", markersize=7, **style)
        axes.annotate(
            _score(row),
            (value, -place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            **style,
        )
    tidy(axes, "When tested, with 95 % interval", x=name)
    axes.set_yticks([-place for place in range(len(rows))], [label(row) for row in rows])
    axes.set_ylim(0.7 - len(rows), 0.8)
    return figure


def _first(rows: Sequence[Row]) -> int:
    return next((place for place, row in enumerate(rows) if row.get("encoder") != "majority"), 0)

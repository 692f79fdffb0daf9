"""Encoders side by side, from the folder of a comparison: table, differences, conditions, figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.report.figures import new_figure, tidy, unit_of
from patchifier.report.folders import Row, Run, read_json, to_number, write_text
from patchifier.report.parts import body, figure_html, wide
from patchifier.report.tables import escape, interval_text, score_text, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_html(run: Run, problems: list[str], out: Path) -> str:
    """Tell a comparison: what has to be said first, the table with what each encoder costs, a figure, other conditions; Markdown beside."""
    results = read_json(run.path / "results.json", problems) if (run.path / "results.json").exists() else {}
    rows = [row for row in results.get("rows", []) if isinstance(row, dict)]
    if not rows:
        return ""
    plain = [row for row in rows if not row.get("subset") and not row.get("condition")]
    differences = {row["second"]: row for row in results.get("differences", [])}
    stem = "comparison-" + "".join(letter if letter.isalnum() else "-" for letter in str(run.facts.get("folder", run.path.name)))
    write_text(out / f"{stem}.md", markdown(results, plain, differences))
    notes = "".join(f"<p><b>{escape(note)}</b></p>" for note in results.get("notes", []))
    intro = f"<p>{escape(results.get('protocol'))} probe; {escape(results.get('split'))}; {escape(plain[0].get('n'))} test clips.</p>"
    alt = "Score of each encoder with its 95 % interval."
    caption = f"Scores on the same clips, with 95 % intervals over groups. From <b>{escape(run.label)}</b>."
    drawn = figure_html(comparison_figure(plain), stem, out, alt=alt, caption=caption)
    return intro + notes + _main_table(plain, differences) + drawn + _subsets_table(rows) + _conditions_table(rows)


def _main_table(plain: Sequence[Row], differences: dict[str, Row]) -> str:
    head = ("encoder", "method", "score", "95 % interval", "against the first", "p (Holm)", "seconds a second", "parameters")
    table = wide(head, f"<tbody class=text>{body([list(map(escape, cells(row, differences))) for row in plain])}</tbody>")
    note = "“Beats” is said of the first encoder, and only when the paired 95 % interval leaves out 0. Seconds a second of audio: of the encoder alone, "
    return table + f'<p class="small">{note}from log-mels where it reads those, from files where it reads files; on the machine named below.</p>'


def cells(row: Row, differences: dict[str, Row]) -> list[str]:
    """What a table says of an encoder."""
    metric, found = row.get("metric"), differences.get(str(row.get("encoder")))
    against = f"{verdict(found)} it: {score_text(found['value'], metric, signed=True)} [{interval_text(found, metric, signed=True)}]" if found else "–"
    cost, size = to_number(row.get("seconds_per_second")), to_number(row.get("parameters"))
    score = score_text(row.get("value"), metric) + (" %" if metric == "accuracy" else f" {metric}")
    return [
        str(row.get("encoder")), str(row.get("method")), score, interval_text(row, metric), against, f"{found['p_holm']:.3f}" if found else "–",
        f"{cost:.2g}" if cost == cost else "–", f"{size:,.0f}" if size == size else "–",
    ]  # fmt: skip


def _subsets_table(rows: Sequence[Row]) -> str:
    parts = [row for row in rows if row.get("subset")]
    if not parts:
        return ""
    lines = [[escape(cell) for cell in (row["encoder"], row["subset"], _score(row), interval_text(row, row["metric"]), row["n"])] for row in parts]
    return "<h3>Parts of the test side</h3>" + wide(("encoder", "part", "score", "95 % interval", "clips"), f"<tbody class=text>{body(lines)}</tbody>")


def _conditions_table(rows: Sequence[Row]) -> str:
    """Score under each deformation, an encoder a row."""
    conditions = list(dict.fromkeys(str(row["condition"]) for row in rows if row.get("condition")))
    if not conditions:
        return ""
    by = {(row["encoder"], row.get("condition", "")): row for row in rows if not row.get("subset")}
    encoders = [name for name in dict.fromkeys(row["encoder"] for row in rows) if (name, conditions[0]) in by]
    lines = [[escape(name), *(escape(_score(by[name, condition])) for condition in ("", *conditions))] for name in encoders]
    told = "<h3>When the test audio is deformed</h3><p>The same probes, trained on clean clips, asked about deformed ones.</p>"
    return told + wide(("encoder", "clean", *map(escape, conditions)), f"<tbody class=text>{body(lines)}</tbody>")


def _score(row: Row) -> str:
    return score_text(row.get("value"), row.get("metric"))


def markdown(results: Row, plain: Sequence[Row], differences: dict[str, Row]) -> str:
    """Lay the comparison out as Markdown."""
    head = ["encoder", "method", "score", "95 % interval", "against the first", "p (Holm)", "seconds a second", "parameters"]
    lines = [f"{results.get('dataset')}: {results.get('protocol')} probe; {results.get('split')}.", "", *(f"{note}\n" for note in results.get("notes", []))]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row, differences)) + " |" for row in plain]
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
        axes.annotate(_score(row), (value, -place), (0, 7), textcoords="offset points", ha="center", fontsize=8, **style)
    tidy(axes, "When tested, with 95 % interval", x=name)
    labels = [f"{row.get('encoder')}" + (f" ({row['method']})" if str(row.get("method", "")).startswith("few") else "") for row in rows]
    axes.set_yticks([-place for place in range(len(rows))], labels)
    axes.set_ylim(0.7 - len(rows), 0.8)
    return figure


def _first(rows: Sequence[Row]) -> int:
    return next((place for place, row in enumerate(rows) if row.get("encoder") != "majority"), 0)

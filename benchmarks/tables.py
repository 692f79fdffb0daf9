"""Write the table of speeds in docs/performance.md from results/*.json, so that no number is typed by hand.

    python benchmarks/tables.py

`make bench` ends with it. A benchmark without a result has no row. Every row names the rate, what it is
compared with in turn in one run, and the command.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- speeds: made by benchmarks/tables.py, do not edit -->", "<!-- end of speeds -->"
KINDS = {"one-of": "multiclass", "many-of": "multilabel", "numbers": "regression"}
STAGES = {"one": "stage I", "two": "stage II", "full": "full fine-tuning"}
HEAD = "| what | our rate | times as fast | as | command |\n|---|---|---|---|---|"


def train_step(facts):
    last = {row["stage"]: row for row in facts["rows"]}  # with every shortcut
    for stage, row in last.items():
        name = f"training step, {STAGES[stage]}"
        floor = (
            f", {100 * row['floor_fraction']:.0f} % of the floor" if "floor_fraction" in row else ""
        )
        yield (
            name,
            f"{number(row['clips_per_s'])} clips/s{floor}",
            number(row["in_all"]),
            "a plain implementation of the same maths",
        )
        if stage == "two":
            yield (
                name,
                "the same",
                number(facts["against_plain_that_skips"][stage]),
                "a plain one that also skips masked patches",
            )


def peers_training(facts):
    precision = facts["rows"][-1]["precision"]
    for row in facts["rows"]:
        if row["precision"] == precision and row["name"].startswith("stage"):
            rate = f"{number(row['clips_per_s'])} clips/s, {number(row['music_s_per_s'])} s of music a second"
            yield (
                f"training step, {row['name']}",
                rate,
                number(row["times_the_peer"]),
                f"a SimCLR step on CLMR's SampleCNN (our re-implementation, {precision}), by seconds of music",
            )


def log_mel(facts):
    block = facts["blocks"][-1]
    rate = f"{number(block['ms']['patchifier'])} ms for {facts['seconds']} s on one thread"
    yield "log-mel", rate, spread(block["ratio"]), f"librosa {facts['librosa']}"


def prepare(facts):
    yield (
        f"`prepare`, {facts['workers']} processes",
        f"{number(facts['x_real_time']['median'])} x real time",
        slower(facts["ratio"]),
        "decoding and resampling alone",
    )
    if len(facts["sizes"]) > 2:
        *_, before, last = facts["sizes"]
        each, was = last["processor_ms_a_further_file"], before["processor_ms_a_further_file"]
        rate = f"{number(each)} ms of a core, parent {number(last['parent_mb'])} MB"
        name = f"`prepare`, a further file of {facts['short_s']} s beyond {before['files']:,}, up to {last['files']:,}"
        yield (
            name,
            rate,
            number(was / each),
            f"below {before['files']:,} files, parent {number(before['parent_mb'])} MB",
        )


def embed(facts):
    yield (
        f"mp3 to vectors, {facts['workers']} processes, `{facts['model']}`",
        f"{number(facts['x_real_time']['median'])} x real time",
        slower(facts["ratio"]),
        "decoding and resampling alone",
    )


def embed_patchifier_paper(facts):
    yield from embed(facts)


def embed_peers(facts):
    names = {
        "mfcc": "librosa's MFCC",
        "handcrafted": "hand-made features",
        "opensmile-eGeMAPSv02": "openSMILE's eGeMAPS",
        "MTT_musicnn-penultimate": "musicnn",
        "bliss-audio": "bliss-audio",
    }
    for name, label in names.items():
        if name in facts["ours_faster"]:
            rate = f"{number(facts['x_real_time'][name]['median'] * facts['ours_faster'][name]['median'])} x real time"
            yield (
                f"mp3 to a vector, one thread, `{facts['model']}`",
                rate,
                spread(facts["ours_faster"][name]),
                label,
            )


def start_up(facts):
    rate = f"{number(facts['first embedding']['median'])} s"
    yield (
        "first embedding of a fresh process",
        rate,
        slower(facts["first embedding / import torch"]),
        "`import torch` alone",
    )


def gpu(facts):
    for batch in sorted({row["batch"] for row in facts["speed"]}):
        minutes = {}  # of both stages, by the way a step is taken
        for row in facts["speed"]:
            if row["batch"] == batch:
                minutes[row["way"]] = minutes.get(row["way"], 0) + row["schedule_minutes"]
        best = min(minutes, key=minutes.get)
        rate = f"{number(minutes[best])} min ({best})"
        yield (
            f"the paper's schedule on one GPU, projected, batch {batch}",
            rate,
            number(minutes["float32"] / minutes[best]),
            "float32, launch by launch",
        )


def cluster(facts):
    yield (
        "mp3 to vectors on Ray",
        f"{number(facts['embed_on_ray_files_s']['median'])} files/s",
        slower(facts["ratio"]),
        "the job without Ray",
    )


def search(facts):
    rows = max(way["rows"] for way in facts["ways"])
    ways = {way["search"]: way for way in facts["ways"] if way["rows"] == rows}
    index, exact = ways["LanceDB, approximate"], ways["numpy, exact"]
    rate = f"{number(index['p50_ms'])} ms, recall at {facts['k']} of {index['recall_at_10']:.3f}"
    yield (
        f"ten nearest of {rows:,} vectors",
        rate,
        number(exact["p50_ms"] / index["p50_ms"]),
        "exact search with numpy",
    )


def grid(facts):
    for row in facts["agreement"]:
        yield (
            f"216 probes together, {KINDS[row['kind']]}",
            f"{number(row['together_s'])} s",
            number(row["speed_up"]),
            "one by one, to the same choice",
        )


BY_MAKE = (train_step, peers_training, log_mel, prepare, start_up, embed, embed_patchifier_paper)
MAKERS = (*BY_MAKE, gpu, embed_peers, cluster, search, grid)  # in the order of the table
COMMANDS = {
    "embed_patchifier_paper": "python benchmarks/embed.py --model patchifier-paper",
    "embed_peers": "python benchmarks/embed.py --peers",
    "gpu": "benchmarks/gpu.sh",
}  # where it is not python benchmarks/NAME.py


def number(value):
    """Three digits, and no more after the point than they leave."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(ratio):
    return f"{number(ratio['median'])} ({number(ratio['low'])} to {number(ratio['high'])})"


def slower(times):
    """The same of how many times the time of the other is taken."""
    return spread(
        {"median": 1 / times["median"], "low": 1 / times["high"], "high": 1 / times["low"]}
    )


def table(folder=RESULTS):
    """Lines of Markdown."""
    lines, machines = [HEAD], []
    for maker in MAKERS:
        path = folder / f"{maker.__name__}.json"
        if path.exists():
            facts = json.loads(path.read_text(encoding="utf-8"))
            command = COMMANDS.get(maker.__name__, f"python benchmarks/{maker.__name__}.py")
            lines += [f"| {' | '.join(row)} | `{command}` |" for row in maker(facts)]
            processor, cores, _, *gpu_and_system = facts["machine"].split(
                ", "
            )  # threads are the benchmark's own
            machines.append(", ".join([processor, cores, *gpu_and_system[:-1]]))
    lines += [
        "",
        f"Medians, 10th to 90th percentile in brackets; on {' and '.join(dict.fromkeys(machines))}.",
    ]
    return "\n".join(lines)


def with_table(page, folder=RESULTS):
    """The page with the table of today's results between its two marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(folder)}\n{END}{after}"


def main():
    page = ROOT / "docs" / "performance.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()

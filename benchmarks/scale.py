"""A plan for pre-training on a million hours of music, from measured rates; writes the tables of docs/scale.md.

    python benchmarks/scale.py [--hours 1e6] [--epochs 3] [--nodes 8] [--devices 1] [--batch 256] [--node-cores 64] [--disk-gb-s 2] [--link-gb-s 1.25]

Rates come from results/prepare.json (decoding), results/train_step.json (this processor) and, once benchmarks/gpu.sh has run on one,
results/gpu.json; until then a GPU is assumed to take the steps that the target of 45 minutes for the paper's schedule allows, and the table
says so. Disks and links are assumptions, given as flags. What is computed: storage, core hours of preparation, the time of each stage, and
how much of a disk and of a link a node needs; the busiest is the bottleneck.
"""

import argparse
import json
import re
from pathlib import Path

from patchifier.config import Config

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "scale.md"
CLIP_S = 29.0
PATHS = {"stage I": "one", "stage II": "two"}
TARGET_S = 45 * 60 / 1_000_000  # a step of 32 clips, if 1,000,000 of them take 45 minutes


def result(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def storage(flags):
    """Rows of the first table: bytes of log-mel, and of audio."""
    spectrogram = Config().spectrogram
    bytes_an_hour = 3600 / spectrogram.frame_s * spectrogram.n_bands * 2  # float16
    parts = flags.nodes
    yield (
        "log-mels, float16",
        f"{bytes_an_hour / 1e6:.1f} MB an hour",
        f"{bytes_an_hour * flags.hours / 1e12:.1f} TB",
    )
    yield f"a node's part of {parts}", "", f"{bytes_an_hour * flags.hours / parts / 1e12:.2f} TB"
    yield "the audio, mp3 at 192 kbit/s", "86.4 MB an hour", f"{86.4e6 * flags.hours / 1e12:.1f} TB"
    shard_s = 2**18 * spectrogram.frame_s
    yield "shards", f"{shard_s / 60:.0f} minutes each", f"{flags.hours * 3600 / shard_s:,.0f} files"


def preparation(flags):
    """Rows of the second table."""
    measured = result("prepare")
    hours_a_core_hour = measured["x_real_time"]["median"] / measured["workers"]
    cores = flags.nodes * flags.node_cores
    core_hours = flags.hours / hours_a_core_hour
    yield "rate of a core", f"{hours_a_core_hour:,.0f} x real time", "results/prepare.json"
    yield "processor", f"{core_hours:,.0f} core hours", ""
    yield (
        f"time on {flags.nodes} nodes of {flags.node_cores} cores",
        f"{core_hours / cores:.1f} hours",
        "",
    )
    audio_gb_s = 86.4e-3 / (3600 / hours_a_core_hour) * flags.node_cores
    yield (
        "audio read by a node",
        f"{audio_gb_s:.2f} GB/s",
        f"of {flags.link_gb_s} GB/s: {audio_gb_s / flags.link_gb_s:.0%}",
    )


def gpu_clips_per_s(stage, batch):
    """Clips a second of one GPU at a batch, and where the figure is from."""
    measured = result("gpu")
    if measured is None:
        return 32 / TARGET_S, "assumed: 1,000,000 steps of 32 in 45 minutes"
    rows = [row for row in measured["speed"] if row["stage"] == stage and row["batch"] <= batch]
    best = max(rows, key=lambda row: row["clips_per_s"])
    return best["clips_per_s"], f"results/gpu.json, {best['way']}, batch {best['batch']}"


def training(flags):
    """Rows of the third table, and the share of time that each resource is busy."""
    clips = flags.hours * 3600 / CLIP_S * flags.epochs
    processor, devices = result("train_step"), flags.nodes * flags.devices
    for name, stage in PATHS.items():
        cpu = max(row["clips_per_s"] for row in processor["rows"] if row["stage"] == stage)
        yield f"{name}, two cores of this processor", f"{cpu:,.0f} clips/s", duration(clips / cpu)
        rate, source = gpu_clips_per_s(stage, flags.batch)
        yield f"{name}, one GPU", f"{rate:,.0f} clips/s ({source})", duration(clips / rate)
        yield (
            f"{name}, {devices} GPUs, if nothing else holds them up",
            f"{rate * devices:,.0f} clips/s",
            duration(clips / rate / devices),
        )
    read_gb_s = (
        rate * flags.devices * 25 * 32 / 1.05 * 64 * 2 / 1e9
    )  # 25 patches of 32 frames, stretched by 1.05 on average
    yield (
        "log-mels read by a node in stage II",
        f"{read_gb_s:.2f} GB/s",
        f"{read_gb_s / flags.disk_gb_s:.0%} of {flags.disk_gb_s} GB/s",
    )
    gradients_gb_s = 2 * 8.3e6 * 4 * rate / flags.batch / 1e9  # float32, out and in
    yield (
        "gradients sent by a node",
        f"{gradients_gb_s:.2f} GB/s",
        f"{gradients_gb_s / flags.link_gb_s:.0%} of {flags.link_gb_s} GB/s",
    )


def duration(seconds):
    """In the unit that reads best."""
    for unit, length in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds / 60:,.0f} minutes"


def table(head, rows):
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def write_tables(page, tables):
    """Print tables and write each between its comments in a page."""
    text = page.read_text(encoding="utf-8")
    for name, rows in tables.items():
        print(f"{name}\n{rows}\n")
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, rows=rows: f"{found[1]}{rows}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    page.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1e6)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--devices", type=int, default=1, help="GPUs of a node.")
    parser.add_argument("--batch", type=int, default=256, help="Clips of a step on each GPU.")
    parser.add_argument("--node-cores", type=int, default=64)
    parser.add_argument(
        "--disk-gb-s",
        type=float,
        default=2.0,
        help="What a node's own disks deliver, at random places of 100 kB.",
    )
    parser.add_argument(
        "--link-gb-s",
        type=float,
        default=12.5,
        help="A node's link to the others and to the store: 100 Gbit/s.",
    )
    flags = parser.parse_args()
    tables = {
        "storage": table(("what", "each", f"{flags.hours:,.0f} hours"), storage(flags)),
        "preparation": table(("what", "figure", "from"), preparation(flags)),
        "training": table(("what", "rate", f"{flags.epochs:g} epochs"), training(flags)),
    }
    write_tables(PAGE, tables)


if __name__ == "__main__":
    main()

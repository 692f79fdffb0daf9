"""The library job on Ray against the one without, and a plan for a large library from measured rates.

    python benchmarks/cluster.py [--files 96] [--seconds 30] [--rounds 3] [--workers 2] [--model DIR]
    python benchmarks/cluster.py --plan [--tracks 10000000] [--minutes 4] [--track_mb 5.76] [--cores 32] [--machines 10,50,200]
        [--rate TRACKS_PER_SECOND_AND_CORE] [--price_core_hour 0.03] [--price_tb_month 23] [--price_1000_get 0.0004]

The first makes mp3 files in a temporary folder and embeds them with `embed_library` and with `embed_on_ray`, in turn in one run, with as many
workers; what both need to start is left out by taking the difference to a library of a quarter of the files, and told beside. The second
measures the rate of one core, by its time and not the clock's, on tracks of that length, or takes it from --rate. Prices are examples: put in
your own. The model is patchifier-base without --model.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from music import make
from timing import RESULTS, keep, say, timed

from patchifier import audio, embed, jobs
from patchifier.datasets import Clip
from patchifier.integrations import object_store, ray
from patchifier.library import build
from patchifier.library.worker import Cut, embed_clips
from patchifier.train.run import machine


def compare(paths, embedder, rounds, workers):
    """Seconds beyond a quarter of the files, and for that quarter: {engine: (rounds,)}, in turn."""
    many, few = [str(path) for path in paths], [str(path) for path in paths[: len(paths) // 4]]
    engines = {"embed_library": build.embed_library, "embed_on_ray": ray.embed_on_ray}
    beyond, start = {name: [] for name in engines}, {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, engine in engines.items():
                spans = {}
                for count, part in (("few", few), ("many", many)):
                    out = (
                        Path(folder)
                        / f"{name}-{count}-{number}{'.parquet' if name == 'embed_library' else ''}"
                    )
                    spans[count] = timed(
                        functools.partial(engine, part, out, embedder=embedder, workers=workers)
                    )[0]
                beyond[name].append(spans["many"] - spans["few"])
                start[name].append(spans["few"])
                print(
                    f"round {number + 1}, {name}: {len(few)} files {spans['few']:.1f} s, {len(many)} files {spans['many']:.1f} s",
                    flush=True,
                )
    return {name: np.array(times) for name, times in beyond.items()}, {
        name: np.array(times) for name, times in start.items()
    }


def run(flags):
    from ray import init, shutdown

    embedder = loaded(flags)
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), flags.files, flags.seconds)
        init(
            num_cpus=flags.workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        beyond, start = compare(paths, embedder, flags.rounds, flags.workers)
        shutdown()
    files = flags.files - flags.files // 4
    results = {
        f"{name}_files_s": say(
            f"{name}, start left out, {flags.workers} workers", files / times, "1/s"
        )
        for name, times in beyond.items()
    }
    results["ratio"] = say(
        "embed_on_ray / embed_library, start left out",
        beyond["embed_on_ray"] / beyond["embed_library"],
        "",
    )
    results["start_s"] = say(
        f"{flags.files // 4} files: embed_on_ray - embed_library",
        start["embed_on_ray"] - start["embed_library"],
        "s",
    )
    print(f"median of {flags.rounds} rounds in turn")
    keep(
        "cluster",
        {
            **results,
            "files": flags.files,
            "seconds": flags.seconds,
            "rounds": flags.rounds,
            "workers": flags.workers,
        },
    )


def loaded(flags):
    return embed.load(flags.model or None)


def measured(embedder, minutes, files=3):
    """Tracks in a second of one core's time, whoever else is on the machine, and what part of it decoding and resampling take."""
    jobs.use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        clips = [Clip(str(path), str(path)) for path in make(Path(folder), files, 60 * minutes)]
        rounds = []
        for _ in range(3):
            marks = [time.process_time()]
            embed_clips(embedder, Cut(), clips)
            marks.append(time.process_time())
            for clip in clips:
                _ = sum(map(len, audio.blocks(clip.path)))
            marks.append(time.process_time())
            whole_s, alone_s = np.diff(marks)
            rounds.append((files / whole_s, alone_s / whole_s))
        return tuple(float(value) for value in np.median(rounds, axis=0))


def plan(flags):
    """Print the table of docs/cluster.md."""
    embedder = loaded(flags)
    rate, share = (flags.rate, None) if flags.rate else measured(embedder, flags.minutes)
    path = RESULTS / "cluster.json"
    ratio, said = (
        (
            max(1.0, json.loads(path.read_text())["ratio"]["median"]),
            "measured: benchmarks/cluster.py",
        )
        if path.exists()
        else (1.0, "assumed")
    )
    core_hours = flags.tracks / rate * ratio / 3600
    in_tb, row_b = flags.tracks * flags.track_mb / 1e6, 4 * embedder.size + 150
    files = -(-flags.tracks // object_store.PART_CLIPS[1])
    per_core_mb = rate / ratio * flags.track_mb
    print(
        f"{flags.tracks:,} tracks of {flags.minutes:g} minutes, {flags.track_mb:g} MB each; {machine()}\n"
    )
    print("| what | how much | from |\n|---|---|---|")
    x = rate * 60 * flags.minutes
    decoding = f", {100 * share:.0f} % of it decoding and resampling" if share else ""
    print(
        f"| one core | {rate:.2f} tracks/s, {x:,.0f} x real time{decoding} | {'--rate' if flags.rate else 'measured now'} |"
    )
    print(f"| Ray against one machine's job | x {ratio:.2f} time | {said} |")
    print(f"| work | {core_hours:,.0f} core hours | tracks / rate |")
    print(
        f"| computing | {core_hours * flags.price_core_hour:,.0f} | {flags.price_core_hour:g} for a core hour, an example |"
    )
    print(f"| audio | {in_tb:,.1f} TB, each byte read once | --track_mb |")
    print(
        f"| its storage for a month | {in_tb * flags.price_tb_month:,.0f} | {flags.price_tb_month:g} for a TB and month, an example |"
    )
    gets = (
        2 * flags.tracks + 3 * files
    )  # length and content of a track; looking for a part and its length, the part
    print(
        f"| requests | {gets / 1e6:,.1f} million, {gets / 1000 * flags.price_1000_get:,.0f} | {flags.price_1000_get:g} for 1000, an example |"
    )
    print(
        f"| vectors | {flags.tracks * row_b / 1e9:,.1f} GB in {files:,} parts | {embedder.size} numbers and about 150 bytes a row |"
    )
    print(
        f"| network | {8 * per_core_mb:,.0f} Mbit/s for each core, {8 * per_core_mb * flags.cores / 1000:,.1f} Gbit/s for {flags.cores} | rate x --track_mb |"
    )
    print(f"\n| machines of {flags.cores} cores | hours | read from the store |\n|---|---|---|")
    for count in map(int, flags.machines.split(",")):
        print(
            f"| {count} | {core_hours / flags.cores / count:,.1f} | {per_core_mb * flags.cores * count / 1000:,.2f} GB/s |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true")
    numbers = {"files": 96, "rounds": 3, "workers": 2, "tracks": 10_000_000, "cores": 32}
    values = {
        "seconds": 30.0,
        "minutes": 4.0,
        "track_mb": 5.76,
        "rate": 0.0,
        "price_core_hour": 0.03,
        "price_tb_month": 23.0,
        "price_1000_get": 0.0004,
    }
    for name, value in {**numbers, **values}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--machines", default="10,50,200")
    parser.add_argument("--model", default="")
    flags = parser.parse_args()
    (plan if flags.plan else run)(flags)


if __name__ == "__main__":
    main()

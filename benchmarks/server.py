"""The server at 50,000 and 100,000 songs: from the command to the first page of songs, and the time of each request.

    python benchmarks/server.py [--rounds 30]

The tables are drawn at random, with the columns and the length of vectors that patchifier-base makes; the files that they name do not
exist. Each start is a process of its own. Besides seconds of the clock, those of the processor are given, which a busy machine does not
change as much. Asked for is a first page within 3 s at 50,000, and similar songs within 50 ms at 100,000. Writes results/server.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import keep, say, timed

from patchifier import datasets
from patchifier.library import embed_library
from patchifier.library.stored import FACTS

SIZES = (50_000, 100_000)
STARTS = 3


def write(folder, count):
    """Write a table of `count` songs."""
    embed_library(datasets.load("demo").clips[0].path, folder / "one.parquet", workers=1)
    one = pq.read_table(folder / "one.parquet")
    draw, size = np.random.default_rng(count), one.schema.field("embedding").type.list_size
    columns = {name: one[name].take(pa.array(np.zeros(count, int))) for name in one.column_names}
    numbers = range(count)
    columns |= {
        "path": pa.array([f"/music/{i % 977}/{i % 4801}/{i}.mp3" for i in numbers]),
        "title": pa.array([f"Song {i}" for i in numbers]),
        "artist": pa.array([f"Artist {i % 977}" for i in numbers]),
        "album": pa.array([f"Album {i % 4801}" for i in numbers]),
        "track_id": pa.array([f"{i:016x}" for i in numbers]),
    }
    vectors = pa.array(draw.standard_normal(count * size, dtype=np.float32))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(vectors, size)
    facts = json.loads(one.schema.metadata[FACTS]) | {"stretches": []}
    facts.pop("crc32", None)
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts)})
    path = folder / f"{count}.parquet"
    pq.write_table(table, path, row_group_size=8192)
    return path


def start(table):
    """Start the server: the process, a client, and seconds to the first page of songs."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "patchifier", "app", str(table), "--port", "0", "--no_browser"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    address = re.search(r"http://\S+", process.stderr.readline())[0]
    client = httpx.Client(base_url=address, timeout=120)
    client.get("/api/tracks").raise_for_status()
    return process, client, (time.perf_counter() - began, used_s(process))


def used_s(process):
    """Seconds of the processor that a process has used."""
    parts = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, parts[11:13])) / os.sysconf("SC_CLK_TCK")


def requests(client):
    """Requests by name."""
    ids = [track["id"] for track in client.get("/api/tracks").json()["tracks"]]

    def similar(**params):
        def ask():
            client.post("/api/similar", json={"like": ids[:1]} | params).raise_for_status()

        return ask

    return {
        "similar": similar(),
        "similar, weights": similar(weights={"rhythm": 2.0, "harmony": 0.5}),
        "similar, at most one of an artist and an album": similar(
            max_per_artist=1, max_per_album=1
        ),
        "similar, five songs and one not": similar(like=ids[:5], unlike=ids[6:7]),
        "songs by artist, from the middle": lambda: client.get(
            "/api/tracks", params={"sort": "artist", "offset": 20_000}
        ),
        "search by words": lambda: client.get("/api/tracks", params={"search": "song 471"}),
    }


def measure(table, rounds):
    """Figures of one table."""
    starts = []
    for _ in range(STARTS):
        process, client, seconds = start(table)
        starts.append(seconds)
        last = len(starts) == STARTS
        times = requested(process, client, rounds) if last else {}
        process.terminate()
        process.communicate()
    passed_s, used_s = np.array(starts).T
    found = {
        "first page of songs": say("first page of songs", passed_s, "s"),
        "the same, seconds of the processor": say("  seconds of the processor", used_s, "s"),
    }
    for name, (seconds, processor_s) in times.items():
        found[name] = say(name, 1e3 * seconds, "ms") | {"processor": 1e3 * processor_s}
        print(f"  milliseconds of the processor{1e3 * processor_s:>33.2f} ms")
    return found


def requested(process, client, rounds):
    """Seconds of each request (rounds,), and those of the processor for one, by its name."""
    found = {}
    for name, ask in requests(client).items():
        ask()
        before_s = used_s(process)
        seconds = np.array([timed(ask)[0] for _ in range(rounds)])
        found[name] = seconds, (used_s(process) - before_s) / rounds
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds, found = parser.parse_args().rounds, {}
    with tempfile.TemporaryDirectory() as folder:
        for count in SIZES:
            print(f"{count:,} songs; load of the machine {os.getloadavg()[0]:.1f}")
            found[count] = measure(write(Path(folder), count), rounds)
            found[count]["load"] = os.getloadavg()[0]
    keep("server", found)


if __name__ == "__main__":
    main()

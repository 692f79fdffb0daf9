"""Real music: retrieval of clips of the same track, and, as diagnostics only, the soundtrack and the artist of a track.

The tracks of the bundled demo are the test side, so that one set of tracks is kept out of pre-training instead of two. Each clip has its own
level, and all are encoded alike. The first encoder of a track stays audible, so soundtrack and artist prove nothing.
"""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groups import dice, share, write_manifest
from sound import LEVEL_DB, SAMPLE_RATE, finish, render_all, write
from tracks import Track

from patchifier import audio
from patchifier.config import RequestError
from patchifier.datasets import demo

CLIP_S = 10.0
CLIPS = {"train": 6, "valid": 6, "test": 4}  # of each track, as far as it is long enough
EDGE_S = 2.0  # excluded at both ends, where tracks fade
TRIES = 8  # starts that are tried until one is not silent
VALID = 0.2  # of a soundtrack's other tracks, if there are at least
FEWEST_TRACKS = 5
TRACKS_OF_ARTIST = 3  # on the training side, at least
METADATA = ("rate", "channels", "kbps", "codec")
COPIES = {  # copies of a track of the demo, found by fingerprint (check_leaks.py): in no task and no training data, and neither are the demo's
    "recordings/starfighter-data/through_space": "recordings/singularity-music/through space",
    "recordings/naev-data/ambient2": "recordings/naev-data/ambient2_5",
}


@dataclass(frozen=True)
class Cut:
    """A clip of a recording; the first of its starts that is not silent is taken."""

    path: str
    source: str
    starts_s: tuple[float, ...]
    seconds: float
    level_db: float


@dataclass(frozen=True)
class Cuts:
    """All clips of one recording, which is decoded once; `path` is that of the clip that is written last."""

    path: str
    cuts: tuple[Cut, ...]


def write_tasks(root: Path, tracks: Sequence[Track]) -> None:
    """Write the manifests of this family, whose clips :func:`cut_all` wrote."""
    drawn = draw(tracks)
    silent = [cut.path for cut, _ in drawn if not (root / cut.path).exists()]
    if silent:
        raise RequestError(
            f"{silent[0]} and {len(silent) - 1} more are silent wherever they could begin, expected music: leave these tracks out."
        )
    for task, rows in tasks([row for _, row in drawn]).items():
        write_manifest(root / "tasks" / f"recordings-{task}.jsonl", rows)


def cut_all(root: Path, cuts: Sequence[Cut], workers: int, progress: Callable[[str], Any]) -> None:
    """Write clips, track by track; a clip whose starts are all silent is not written."""
    by_source: dict[str, list[Cut]] = {}
    for cut in cuts:
        by_source.setdefault(cut.source, []).append(cut)
    render_all(
        root,
        [Cuts(each[-1].path, tuple(each)) for each in by_source.values()],
        workers,
        progress,
        cut_out,
    )


def sides(tracks: Sequence[Track]) -> dict[str, str]:
    """Give each group a side: test for tracks of the demo, validation for a share of each soundtrack's others."""
    of_demo = demo_files()
    tested = {track.group for track in tracks if (track.package, track.inside) in of_demo}
    found = dict.fromkeys(tested, "test")
    for package in sorted({track.package for track in tracks}):
        rest = sorted(
            {track.group for track in tracks if track.package == package} - tested,
            key=lambda group: share("recordings", group),
        )
        validating = round(VALID * len(rest)) if len(rest) >= FEWEST_TRACKS else 0
        found |= {
            group: "valid" if rank < validating else "train" for rank, group in enumerate(rest)
        }
    return found


def demo_files() -> set[tuple[str, str]]:
    """Return (package, file in it) of every track of the demo's clips."""
    with (demo.ROOT / "clips.csv").open(newline="", encoding="utf-8") as stream:
        return {
            (row["source"].removeprefix("Debian package ").split()[0], row["source_file"])
            for row in csv.DictReader(stream)
        }


def draw(tracks: Sequence[Track]) -> list[tuple[Cut, dict[str, Any]]]:
    """Draw the clips of every track, one from each of equal stretches, without overlap."""
    where = sides(tracks)
    drawn = []
    for track in without_copies(tracks):
        side = where[track.group]
        count = min(CLIPS[side], int((track.seconds - 2 * EDGE_S) // (1.5 * CLIP_S)))
        for number in range(count):
            path = f"clips/recordings/{file_name(track)}-{number}.ogg"
            generator = dice("cut", path)
            stretch = (track.seconds - 2 * EDGE_S) / count
            starts = EDGE_S + number * stretch + generator.uniform(0, stretch - CLIP_S, TRIES)
            cut = Cut(
                path,
                track.path,
                tuple(round(float(start), 3) for start in starts),
                CLIP_S,
                float(generator.uniform(*LEVEL_DB)),
            )
            drawn.append(
                (
                    cut,
                    {
                        "path": path,
                        "split": side,
                        "group": track.group,
                        "source": track.path,
                        **_facts(track),
                    },
                )
            )
    return drawn


def without_copies(tracks: Sequence[Track]) -> list[Track]:
    """Return the tracks that have no copy under another name."""
    return [track for track in tracks if track.group not in (*COPIES, *COPIES.values())]


def file_name(track: Track) -> str:
    """Return package, last folder and name of a track, as file name of its clips."""
    return f"{track.package}/{'-'.join(Path(track.inside).with_suffix('').parts[-2:]).replace(' ', '_')}"


def _facts(track: Track) -> dict[str, Any]:
    return {
        "soundtrack": track.package,
        "artist": track.artist,
        "title": track.title,
        "licence": track.licence,
    } | {name: getattr(track, name) for name in METADATA}


def cut_out(root: Path, cuts: Cuts) -> str:
    """Write the missing clips of one recording."""
    waveform = audio.load(root / cuts.cuts[0].source)
    for cut in cuts.cuts:
        for start in () if (root / cut.path).exists() else cut.starts_s:
            first = round(start * SAMPLE_RATE)
            try:
                finished = finish(
                    waveform[first : first + round(cut.seconds * SAMPLE_RATE)],
                    SAMPLE_RATE,
                    cut.seconds,
                    cut.level_db,
                )
            except RequestError:  # silence between two parts of a track
                continue
            write(root / cut.path, finished)
            break
    return cuts.path


def tasks(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each task, with its target."""
    alone = {group for group, count in Counter(row["group"] for row in rows).items() if count < 2}
    return {
        "retrieval": [row | {"target": row["group"]} for row in rows if row["group"] not in alone],
        "soundtrack": with_enough_groups(rows, "soundtrack"),
        "artist": with_enough_groups([row for row in rows if row["artist"]], "artist"),
    }


def with_enough_groups(rows: Sequence[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """Return the rows of labels with enough training tracks that are on every side."""
    groups: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        groups.setdefault((row[label], row["split"]), set()).add(row["group"])
    names = {name for name, _ in groups}
    kept = {
        name for name in names
        if len(groups.get((name, "train"), ())) >= TRACKS_OF_ARTIST and all(groups.get((name, side)) for side in ("valid", "test"))
    }  # fmt: skip
    return [row | {"target": row[label]} for row in rows if row[label] in kept]

"""Training data that shares nothing with the tests: recordings, and new renderings of scores, grooves and notes of the training side.

Notes are drawn at random, by training-side presets. No validation or test clip is in it, no track of the demo, and not the SoundFont of the test;
:func:`check` verifies that or stops.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grooves
import notes
import scores
from duplicate_pieces import duplicates
from groups import (
    deal,
    dice,
    read_manifest,
    require_disjoint,
    require_free,
    require_split,
    reserved_piece,
)
from recordings import Cut, demo_files, file_name, sides, without_copies
from score_sources import COLLECTIONS
from sound import LEVEL_DB, SEEN, UNSEEN, Sound, draw_finish, render_all
from tracks import Track

from patchifier.config import RequestError
from patchifier.io import replaced_file

PIECE_S = 30.0
LONGEST_S = 600.0  # of a track: long tracks repeat themselves
SHORTEST_S = 18.6  # the shortest crop in training is 25 patches
PER_PIECE = 4  # clips of each training-side piece whose terms allow any use
PER_STYLE = 10  # accompaniments in each training-side style
PHRASES = 360  # clips of notes and chords at random
NAMES = ("pretraining.jsonl", "pretraining-recordings.jsonl")


def write_recordings(root: Path, tracks: Sequence[Track], more: Sequence[Track]) -> None:
    """Write the list of the recordings that were cut; silent stretches were not cut."""
    write(
        root,
        NAMES[1],
        [row for cut, row in draw_recordings(tracks, more) if (root / cut.path).exists()],
    )


def build_rendered(root: Path, workers: int, progress: Callable[[str], Any]) -> dict[str, float]:
    """Render scores, accompaniments and notes, list them after the recordings, and check; return hours by kind."""
    pieces, accompaniments, phrases = draw_scores(root), draw_grooves(root), draw_phrases()
    render_all(root, [sound for sound, _ in (*pieces, *phrases)], workers, progress)
    render_all(root, [groove for groove, _ in accompaniments], workers, progress, _accompany)
    rows = read_manifest(root / NAMES[1]) + [row for _, row in (*pieces, *accompaniments, *phrases)]
    write(root, NAMES[0], rows)
    check(root)
    hours: Counter[str] = Counter()
    for row in rows:
        hours[row["kind"]] += row["seconds"] / 3600
    return {kind: round(value, 2) for kind, value in hours.items()}


def write(root: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write one of the two lists."""
    with replaced_file(root / name) as new:
        new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw_recordings(
    tracks: Sequence[Track], more: Sequence[Track] = ()
) -> list[tuple[Cut, dict[str, Any]]]:
    """Draw stretches of every training-side track and of packages that are in no task, encoded as all clips are."""
    where = sides(tracks)
    drawn = []
    for track in without_copies(
        (*(track for track in tracks if where[track.group] == "train"), *more)
    ):
        for number, (start, end) in enumerate(stretches(min(track.seconds, LONGEST_S))):
            path = f"pretraining/recordings/{file_name(track)}-{number:02d}.ogg"
            seconds, level = round(end - start, 3), float(dice("level", path).uniform(*LEVEL_DB))
            row = {
                "path": path,
                "seconds": seconds,
                "group": track.group,
                "source": track.path,
                "kind": "recordings",
            }
            drawn.append(
                (
                    Cut(path, track.path, (start,), seconds, level),
                    row | {"artist": track.artist, "title": track.title, "licence": track.licence},
                )
            )
    return drawn


def stretches(seconds: float) -> list[tuple[float, float]]:
    """Return consecutive stretches of 30 s; the rest at the end is one more if it is long enough to train on."""
    found = [
        (PIECE_S * number, min(seconds, PIECE_S * (number + 1)))
        for number in range(int(seconds // PIECE_S) + 1)
    ]
    return [(round(start, 3), round(end, 3)) for start, end in found if end - start >= SHORTEST_S]


def draw_scores(root: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Draw clips of training-side pieces of free collections."""
    drawn = []
    for piece, side in scores.dealt(root):
        for number in range(
            PER_PIECE if side == "train" and COLLECTIONS[piece["collection"]].free else 0
        ):
            sound, _ = scores.perform(
                piece, f"pretraining/scores/{piece['id']}-{number}.ogg", SEEN, PIECE_S
            )
            drawn.append((sound, _rendered(sound.path, f"scores/{piece['group']}", "scores")))
    return drawn


def draw_grooves(root: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Draw accompaniments over training-side progressions, in training-side styles and in the styles of the style task."""
    styles = grooves.find_styles(root / "deb" / grooves.MMA / "lib" / "stdlib")
    pool, drawn = grooves.progressions()["train"], []
    for style in training_styles(styles):
        for number in range(PER_STYLE):
            groove, name = grooves.draw(
                f"pretraining/grooves/{style}-{number}.ogg",
                "train",
                styles[style],
                SEEN,
                pool,
                PIECE_S,
            )
            drawn.append(
                (
                    groove,
                    _rendered(groove.path, f"grooves/{style}", "grooves") | {"progression": name},
                )
            )
    return drawn


def draw_phrases() -> list[tuple[Sound, dict[str, Any]]]:
    """Draw clips of one to four training-side presets, each with independent notes and chords."""
    pool, drawn = notes.presets("train"), []
    for number in range(PHRASES):
        path = f"pretraining/notes/{number:04d}.ogg"
        generator = dice("phrase", path)
        playing = generator.choice(sorted(pool), int(generator.integers(1, 5)), replace=False)
        programs = {
            channel: int(generator.choice(pool[family])) for channel, family in enumerate(playing)
        }
        sounding = [
            note for channel in programs for note in notes.draw_phrase(channel, PIECE_S, generator)
        ]
        sound = Sound(path, SEEN, programs, sounding, PIECE_S, **draw_finish(generator))
        drawn.append((sound, _rendered(path, f"notes/{number:04d}", "notes")))
    return drawn


def training_styles(styles: dict[str, tuple[str, int]]) -> list[str]:
    """Return the styles of the training data: those of the style task, and of the others the training side's."""
    others = {
        beats: deal(
            (
                name
                for name, (_, count) in styles.items()
                if count == beats and name not in grooves.STYLED
            ),
            f"grooves/{beats}",
        )
        for beats in (3, 4)
    }
    return sorted(
        [
            *grooves.STYLED,
            *(name for dealt in others.values() for name, side in dealt.items() if side == "train"),
        ]
    )


def _accompany(root: Path, groove: grooves.Groove) -> str:
    return grooves.accompany(root, groove, PIECE_S)


def _rendered(path: str, group: str, kind: str) -> dict[str, Any]:
    return {"path": path, "seconds": PIECE_S, "group": group, "kind": kind, "licence": "rendered"}


def check(root: Path, names: Sequence[str] = NAMES) -> int:
    """Compare lists for pre-training with every task, the demo and the reserved material; return the number of compared rows.

    Raises
    ------
    RequestError
        With the first row that is not allowed, or the first group that is on two sides.
    """
    tested = []
    for path in sorted((root / "tasks").glob("*.jsonl")):
        rows = read_manifest(path)
        require_split(rows, path.name)
        tested += rows
    progressions = {
        row["progression"] for row in tested if row["split"] != "train" and "progression" in row
    }
    demo = {f"deb/{package}/{inside}" for package, inside in demo_files()}
    compared = 0
    for name in names:
        rows = read_manifest(root / name)
        require_disjoint(rows, tested)
        require_no_duplicates(root, rows, tested)
        for row in rows:
            for part in Path(row.get("source", row["path"])).parts:
                require_free(part)
            if row.get("kind") == "scores" and reserved_piece(row["group"].removeprefix("scores/")):
                raise RequestError(
                    f"{name}: {row['group']} is reserved for a final evaluation, expected other pieces: build again."
                )
            if (
                row.get("source") in demo
                or row.get("progression") in progressions
                or Path(UNSEEN).stem in json.dumps(row)
            ):
                raise RequestError(
                    f"{name}: {row['path']} belongs to the demo or to another side, expected training-side music alone: build again."
                )
            compared += 1
    return compared


def require_no_duplicates(
    root: Path, rows: Sequence[dict[str, Any]], tested: Sequence[dict[str, Any]]
) -> None:
    """Refuse scores that are validation or test pieces under another name."""
    trained_on = {
        row["path"].removeprefix("pretraining/scores/").rpartition("-")[0]
        for row in rows
        if row.get("kind") == "scores"
    }
    evaluated = {
        row["path"].removeprefix("clips/scores/").removesuffix(".ogg")
        for row in tested
        if row["group"].startswith("scores/") and row["split"] != "train"
    }
    pieces = [piece for piece, _ in scores.dealt(root)] if trained_on and evaluated else []
    candidates = [piece for piece in pieces if piece["id"] in trained_on | evaluated]
    for one, other in duplicates(candidates):
        names = {candidates[number]["id"]: candidates[number]["group"] for number in (one, other)}
        if trained_on & names.keys() and evaluated & names.keys():
            raise RequestError(
                f"{' and '.join(names.values())} are the same music, expected none that trains and tests: build again."
            )

"""The scores in music21: their list, and their notes and labels as plain rows.

A fifth of the pieces is reserved and never parsed. Key and mode are those notated. Where the mark in a file is only a program's default, the
notes decide between its candidates, and `key_source` says so: use key and mode only where it is "notated" and the notes of the clip agree.
"""

import glob
import gzip
import importlib.util
import itertools
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from groups import dice, reserved_piece

from patchifier.config import RequestError
from patchifier.io import replaced_file

PIECES = 150  # of each collection, at most
FEWEST_NOTES = 12
TUNE = re.compile(r"(?m)^(?=X:)")


@dataclass(frozen=True)
class Collection:
    """A class: files of music21's corpus, the number of parts of its pieces, and whether its terms allow any use."""

    pattern: str
    polyphonic: bool
    parts: tuple[int, int]
    free: bool  # old music, encoded without terms: may be rendered for pre-training


COLLECTIONS = {
    "bach-chorales": Collection("bach/bwv*.mxl", True, (4, 4), False),
    "palestrina-masses": Collection(
        "palestrina/*.krn", True, (2, 15), False
    ),  # all rights to derived formats reserved
    "monteverdi-madrigals": Collection("monteverdi/*.mxl", True, (2, 15), True),
    "trecento-songs": Collection("trecento/*.*ml", True, (2, 15), False),
    "string-quartets": Collection("{haydn,mozart,beethoven}/**/*.{mxl,krn}", True, (4, 4), False),
    "ryan-fiddle": Collection("ryansMammoth/*.abc", False, (1, 1), True),
    "oneill-irish": Collection("oneills1850/*.abc", False, (1, 1), True),
    "aird-airs": Collection("airdsAirs/*.abc", False, (1, 1), True),
    "northumbrian": Collection("miscFolk/northumbrian*.abc", False, (1, 1), True),
    "american-fife": Collection("miscFolk/americanfife*.abc", False, (1, 1), True),
    "essen-german": Collection(
        "essenFolksong/{altdeu*,ballad*,boehme*,erk*,fink*,kinder*,dva*,zuccal*}.abc",
        False,
        (1, 1),
        False,
    ),  # Essen: not commercial
    "essen-china": Collection("essenFolksong/han*.abc", False, (1, 1), False),
    "essen-luxembourg": Collection("essenFolksong/lux.abc", False, (1, 1), False),
    "essen-lorraine": Collection("essenFolksong/lot.abc", False, (1, 1), False),
}

MAJOR = np.array(
    [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]
)  # Krumhansl and Kessler 1982
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


@dataclass(frozen=True)
class Source:
    """A piece that has not been parsed: its file, the text of one tune if the file holds many, and its group."""

    file: str
    tune: str
    group: str


def parse(name: str, out: Path) -> int:
    """Parse a collection's pieces into OUT/NAME.jsonl.gz, unless it exists; return the number of pieces."""
    path = out / f"{name}.jsonl.gz"
    if not path.exists():
        rows = list(_rows(name))
        with replaced_file(path) as new, gzip.open(new, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return len(read(name, out))


def read(name: str, out: Path) -> list[dict[str, Any]]:
    """Pieces of a collection that :func:`parse` wrote."""
    with gzip.open(out / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        pieces = [json.loads(line) for line in itertools.islice(stream, PIECES)]
    for piece in pieces:
        if reserved_piece(piece["group"]):
            raise RequestError(
                f"{out / name}: piece {piece['group']!r} is reserved for a final evaluation: delete the file and build again."
            )
    return pieces


def _rows(name: str) -> Any:
    """Pieces in the order of their hashes, up to :data:`PIECES`; broken files and pieces with another number of parts are skipped."""
    warnings.simplefilter("ignore")
    free = [source for source in sources(name) if not reserved_piece(source.group)]
    found = 0
    for number in dice("pieces", name).permutation(len(free)):
        if found == PIECES:
            return
        try:
            piece = _parsed(name, free[number])
        except Exception:  # some forty files of the corpus are broken, each in its own way
            continue
        if COLLECTIONS[name].parts[0] <= piece["parts"] <= COLLECTIONS[name].parts[1]:
            found += 1
            yield piece


def corpus() -> Path:
    """Folder of music21's scores."""
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise RequestError(
            "music21 cannot be imported, expected it in ROOT/python: run build.py, which puts it there."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "corpus"


def sources(name: str) -> list[Source]:
    """Every piece of a collection, reserved ones too."""
    root = corpus()
    files = sorted(
        {
            os.path.relpath(file, root)
            for pattern in braces(COLLECTIONS[name].pattern)
            for file in glob.glob(str(root / pattern), recursive=True)
        }
    )
    found = []
    for file in files:
        if not file.endswith(".abc"):
            if "_old" not in file and "k545" not in file:
                found.append(Source(file, "", _group(name, file, root)))
            continue
        text = (root / file).read_text(encoding="utf-8", errors="replace")
        tunes = [tune.rstrip() + "\n" for tune in TUNE.split(text)[1:] if field(tune, "K")]
        found += [Source(file, tune, f"{file}#{field(tune, 'X')}") for tune in tunes]
    return found


def _group(name: str, file: str, root: Path) -> str:
    """Movements of a mass, or of a quartet, are one group."""
    if name == "palestrina-masses":
        mass = re.search(r"!!!OPR:\s*(.+)", (root / file).read_text(errors="replace"))
        return "palestrina/" + (mass[1].strip() if mass else file)
    return "/".join(file.split("/")[:2]) if name == "string-quartets" else file


def braces(pattern: str) -> list[str]:
    """Patterns that {a,b} in a pattern stand for."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [
        each
        for choice in found[1].split(",")
        for each in braces(pattern[: found.start()] + choice + pattern[found.end() :])
    ]


def field(text: str, letter: str) -> str:
    """Value of the first such field of an ABC tune, "" if there is none."""
    found = re.search(rf"(?m)^{letter}:[ \t]*(.*)$", text)
    return found[1].strip().strip('"') if found else ""


def _parsed(name: str, source: Source) -> dict[str, Any]:
    from music21 import converter

    score = (
        converter.parseData(source.tune, format="abc")
        if source.tune
        else converter.parse(corpus() / source.file, forceSource=True)
    )
    if len(getattr(score, "scores", ())):
        score = score.scores[0]
    notes, parts, flat = _notes(score)
    if len(notes) < FEWEST_NOTES or not all(20 <= pitch <= 110 for _, _, pitch, _ in notes):
        raise ValueError("too few notes, or out of range")
    first = notes[0][0]
    for note in notes:
        note[0] = round(note[0] - first, 4)  # leading rests are removed
    metres = abc_metres(source.tune) if source.tune else _metres(flat, first)
    keys = _keys(flat, first)
    number = dice(source.group if source.tune else source.file, source.tune).integers(2**40)
    return {
        "collection": name, "group": source.group, "id": f"{name}/{number:010x}", "parts": parts,
        "quarters": max(start + length for start, length, _, _ in notes), "onsets": len({note[0] for note in notes}),
        "metres": metres, "keys": keys, "notes": notes,
    }  # fmt: skip


def _notes(score: Any) -> tuple[list[list[Any]], int, Any]:
    """Rows [start, length (quarters), pitch, part], tied notes joined; the number of parts with notes; the first part, flat."""
    from music21 import chord, harmony, note

    parts = list(getattr(score, "parts", ())) or [score]
    rows: list[list[Any]] = []
    sounding, flats = 0, [part.flatten() for part in parts]
    for flat in flats:
        before, tied = len(rows), {}
        for element in flat.notes:
            length, start = float(element.quarterLength), round(float(element.offset), 4)
            if length <= 0 or isinstance(element, harmony.ChordSymbol):
                continue
            singles = (
                [element]
                if isinstance(element, note.Note)
                else list(element.notes)
                if isinstance(element, chord.Chord)
                else []
            )
            for single in singles:
                pitch, tie = int(single.pitch.midi), single.tie or element.tie
                earlier = (
                    tied.pop(pitch, None)
                    if tie is not None and tie.type in ("continue", "stop")
                    else None
                )
                if earlier is not None and abs(earlier[0] + earlier[1] - start) < 0.02:
                    earlier[1], row = round(start + length - earlier[0], 4), earlier
                else:
                    row = [start, round(length, 4), pitch, sounding]
                    rows.append(row)
                if tie is not None and tie.type in ("start", "continue"):
                    tied[pitch] = row
        sounding += len(rows) > before
    return sorted(rows), sounding, flats[0]


def _metres(flat: Any, first: float) -> list[list[Any]]:
    from music21 import meter

    return changes(
        [
            [max(0.0, round(float(each.offset) - first, 4)), each.ratioString]
            for each in flat.getElementsByClass(meter.TimeSignature)
        ]
    )


def abc_metres(tune: str) -> list[list[Any]]:
    """A tune's M: fields (music21 also reports pick-ups as metres); the position of a second one is not read: it only marks the tune as changing."""
    names = [
        {"C": "4/4", "C|": "2/2"}.get(each.strip(), each.strip())
        for each in re.findall(r"(?m)(?:^M:|\[M:)[ \t]*([^\]%\n]*)", tune)
    ]
    return changes(
        [
            [0.001 * number, each]
            for number, each in enumerate(names)
            if re.fullmatch(r"\d{1,2}/(1|2|4|8|16)", each)
        ]
    )


def _keys(flat: Any, first: float) -> list[list[Any]]:
    """Rows [start, sharps, tonic or None, mode or None]."""
    from music21 import key

    rows = []
    for each in flat.getElementsByClass(key.KeySignature):
        if each.sharps is not None:
            known = isinstance(each, key.Key)
            start = max(0.0, round(float(each.offset) - first, 4))
            rows.append(
                [
                    start,
                    int(each.sharps),
                    int(each.tonic.pitchClass) if known else None,
                    str(each.mode) if known else None,
                ]
            )
    return changes(rows)


def changes(rows: list[list[Any]]) -> list[list[Any]]:
    """Rows that differ from the one before them in more than their start."""
    return [row for index, row in enumerate(rows) if index == 0 or row[1:] != rows[index - 1][1:]]


# --- key ---


def key_strengths(notes: list[list[Any]]) -> np.ndarray:
    """Correlation of the pitch classes, weighted by length, with Krumhansl's profiles: (2 modes, 12 tonics)."""
    profile = np.zeros(12)
    for _, length, pitch, _ in notes:
        profile[pitch % 12] += length
    return np.array(
        [
            [np.corrcoef(np.roll(mode, tonic), profile)[0, 1] for tonic in range(12)]
            for mode in (MAJOR, MINOR)
        ]
    )


def key_of(name: str, notes: list[list[Any]], signature: list[Any] | None) -> tuple[int, str, str]:
    """Tonic, mode ("" if it is unknown) and where they come from, of notes under a row of `keys`."""
    strengths = key_strengths(notes)
    if signature is None:
        mode, tonic = np.unravel_index(int(np.nanargmax(strengths)), strengths.shape)
        return int(tonic), ("major", "minor")[mode], "analysis"
    _, sharps, tonic, mode = signature
    if name == "essen-china" and tonic is not None:
        return tonic, "", "do of the number notation"
    if name.startswith("essen") and tonic is not None:  # these files write every mode as major
        return (
            tonic,
            "major" if strengths[0][tonic] >= strengths[1][tonic] else "minor",
            "tonic notated",
        )
    if not COLLECTIONS[name].polyphonic and tonic is not None:
        return tonic, str(mode), "notated"
    candidates = {
        "major": (7 * sharps) % 12,
        "minor": (7 * sharps - 3) % 12,
    }  # "major" is often a writer's default
    likelier = (
        "major"
        if strengths[0][candidates["major"]] >= strengths[1][candidates["minor"]]
        else "minor"
    )
    notated = (candidates[likelier], likelier) == (tonic, mode)
    return candidates[likelier], likelier, "notated" if notated else "signature notated"

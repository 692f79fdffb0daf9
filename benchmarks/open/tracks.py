"""List the music in the unpacked packages of free games: tracks, artists and licences.

A track is a file of 25 s or more outside folders of effects and speech. Songs of Frets on Fire are stems, which are added. The
artist is, in this order: that of a side file (album.json, .music), of the file's own tags, of its name, the one holder that the
copyright file names for exactly this file, or of the whole package where one person made it.
"""

import fnmatch
import gzip
import html
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mutagen
import numpy as np
import soundfile

from patchifier.io import replaced_file

SUFFIXES = {".ogg", ".oga", ".opus", ".mp3", ".flac", ".wav"}
FEWEST_S = 25.0
NOT_MUSIC = {
    "sounds",
    "sfx",
    "speech",
    "voices",
    "voice",
    "library",
    "introcutscene",
    "introcutscene2",
}  # folders
NOT_SONGS = {"thunder.ogg", "steamLocomotive.ogg", "nolok_speech.ogg"}
STEMS = ("song", "guitar", "rhythm", "drums", "bass")

ALIASES = {
    "www.elysis.de": "elysis",
    "marek moeckel": "Wansti",
    "0zone0ne": "OzoneOne",
    "ozoneone": "OzoneOne",
    "west": "West",
}
CONTAINED = {
    "elysis": "elysis", "raudenbusch": "elysis", "vanethian": "Manuel Marino", "crystan": "Crystan", "christian hoffmann": "Crystan", "indiedb": "Crystan",
}  # fmt: skip
SERIES = (  # (package, how its file names begin, artist)
    ("ufoai-music", "Crystan-", "Crystan"), ("ufoai-music", "Psymong", "Psymong"), ("ufoai-music", "David", "David Reeves (Destructavator)"),
    ("ufoai-music", "van_", "Manuel Marino"), ("ufoai-music", "karlmacklin_", "Karl Macklin"), ("hyperrogue-music", "hr-savino-", "Will Savino"),
    ("hyperrogue-music", "hr-domina-", "Lincoln Domina"), ("hyperrogue-music", "hr3-", "Shawn Parrotte (NeonCorridor)"),
)  # fmt: skip
ONE_PERSON = {
    "asc-music": "Michael Kievernagel",
    "fretsonfire-songs-sectoid": "Sectoid",
    "fretsonfire-songs-muldjord": "Muldjord",
}
STATED = {
    "fretsonfire-songs-muldjord": "CC-BY-SA-3.0",
    "fretsonfire-songs-sectoid": "Expat",
    "singularity-music": "CC-BY-SA-3.0",
}  # in free text, read by hand
NOBODY = {"", "(none)", "none", "unknown", "unknown artist", "other", "non", "artist"}


@dataclass(frozen=True)
class Track:
    """A track as a file.

    Parameters
    ----------
    path : str
        Below the root.
    package, inside : str
        Debian package, and the file's path in it.
    group : str
        Variants of one song share it.
    artist, title, licence : str
        "" where unknown.
    seconds, rate, channels, kbps, codec
        Properties of the file.
    """

    path: str
    package: str
    inside: str
    group: str
    artist: str
    title: str
    licence: str
    seconds: float
    rate: int
    channels: int
    kbps: float
    codec: str


def list_tracks(root: Path, packages: Sequence[str]) -> list[Track]:
    """List all tracks of these packages, which are unpacked in ROOT/deb."""
    return [track for package in packages for track in _of_package(root, package)]


def _of_package(root: Path, package: str) -> Iterator[Track]:
    folder = root / "deb" / package
    licences, known = Licences(folder / "usr/share/doc" / package), side_files(folder)
    for path, inside in sorted(_files(root, package)):
        try:
            facts = soundfile.info(path)
        except soundfile.SoundFileError:
            continue
        seconds = facts.frames / facts.samplerate
        if seconds < FEWEST_S:
            continue
        tags = _tags(folder / inside) | known.get(os.path.normpath(folder / inside), {})
        paragraph = licences.of(inside)
        yield Track(
            str(path.relative_to(root)), package, inside, song(package, path.stem), _artist(package, Path(inside).stem, tags, paragraph),
            tags.get("title", "") or Path(inside).stem, STATED.get(package, "") if not licences.paragraphs else paragraph.get("license", [""])[0],
            round(seconds, 2), facts.samplerate, facts.channels, round(path.stat().st_size / seconds / 125, 1), path.suffix.lower()[1:],
        )  # fmt: skip


def _files(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """List the files of music with their paths in the package; links are skipped, since they repeat a file."""
    folder = root / "deb" / package
    stems: dict[Path, list[Path]] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            inside = str(path.relative_to(folder))
            if (
                path.is_symlink()
                or path.suffix.lower() not in SUFFIXES
                or NOT_MUSIC & set(inside.lower().split("/")[:-1])
                or name in NOT_SONGS
            ):
                continue
            if package.startswith("fretsonfire"):
                stems.setdefault(path.parent, []).append(path)
            else:
                yield path, inside
    for song_folder, files in stems.items():
        used = sorted(path for path in files if path.stem in STEMS)
        if "songs" in song_folder.parts and used:
            mixed = (
                root
                / "work"
                / "mixed"
                / package
                / f"{re.sub('[^a-z0-9]+', '-', song_folder.name.lower())}.flac"
            )
            if not mixed.exists():
                mix(used, mixed)
            first = next((path for path in used if path.stem == "song"), used[0])
            yield mixed, str(first.relative_to(folder))


def mix(stems: Sequence[Path], out: Path) -> None:
    """Add stems; if the sum clips, lower the level of all."""
    total = np.zeros((0, 2), np.float32)
    for path in stems:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        longest = max(len(total), len(samples))
        total = np.pad(total, ((0, longest - len(total)), (0, 0))) + np.pad(
            samples, ((0, longest - len(samples)), (0, 0))
        )
    total /= max(1.0, float(np.abs(total).max()))
    with replaced_file(out) as new:
        soundfile.write(new, total, rate, format="FLAC", subtype="PCM_16")


def song(package: str, stem: str) -> str:
    """Return the group of a track: a fast lap, a remix or an old take belongs to its song."""
    name = re.sub(r"(_fast|_f|_remix|_remake|_enhanced|[_-]old|_revisited|_)$", "", stem.lower())
    return f"recordings/{package}/{re.sub('_remake$', '', name)}"


# --- artists ---


def _artist(package: str, stem: str, tags: dict[str, str], paragraph: dict[str, list[str]]) -> str:
    for owner, start, artist in SERIES:
        if owner == package and stem.startswith(start):
            return artist
    if tags.get("artist"):
        return one_spelling(tags["artist"])
    numbered = re.match(r"^\d+ - (.+?) - (.+)$", stem)
    if numbered:
        return one_spelling(numbered[1])
    if tags.get("composer"):
        return one_spelling(tags["composer"])
    holders = _holders(paragraph) if paragraph.get("exact") else []
    return one_spelling(holders[0]) if len(holders) == 1 else ONE_PERSON.get(package, "")


def one_spelling(artist: str) -> str:
    """Return one spelling of an artist's name, without addresses."""
    low = artist.lower().strip()
    found = next((name for part, name in CONTAINED.items() if part in low), "")
    plain = (
        re.sub(r"\s*[<(]?(https?://|www\.|\S+@)\S*[>)]?\s*$", "", artist).strip() or artist.strip()
    )
    return found or ALIASES.get(plain.lower().rstrip("/"), plain)


def _tags(path: Path) -> dict[str, str]:
    try:
        raw = getattr(mutagen.File(path), "tags", None) or {}
    except mutagen.MutagenError:
        return {}
    names = {
        "tpe1": "artist",
        "tit2": "title",
        "artist": "artist",
        "title": "title",
        "composer": "composer",
    }
    found = {}
    for key, value in dict(raw).items():
        name, text = (
            names.get(str(key).lower(), ""),
            re.sub(r"\s+", " ", str(value[0] if isinstance(value, list) else value)).strip(),
        )
        if name and text.lower() not in NOBODY:
            found[name] = text
    return found


def side_files(folder: Path) -> dict[str, dict[str, str]]:
    """Title and artist of files that warzone2100's album.json and supertuxkart's .music name."""
    found: dict[str, dict[str, str]] = {}
    for path in folder.rglob("album.json"):
        album = json.loads(path.read_text(encoding="utf-8"))
        for track in album.get("tracks", []):
            found[os.path.normpath(path.parent / track["filename"])] = {
                "title": track.get("title", ""),
                "artist": track.get("author") or album.get("author", ""),
            }
    for path in folder.rglob("*.music"):
        text = path.read_text(encoding="utf-8", errors="replace")
        values = {
            key: html.unescape(value)
            for key, value in re.findall(r'([\w-]+)\s*=\s*"([^"]*)"', text)
        }
        for key in ("file", "fast-filename"):
            if "<music" in text and values.get(key):
                found[os.path.normpath(path.parent / values[key])] = {
                    "title": values.get("title", ""),
                    "artist": values.get("composer", ""),
                }
    return {
        path: {key: value for key, value in facts.items() if value} for path, facts in found.items()
    }


# --- licences ---


class Licences:
    """A package's copyright file in Debian's format (DEP-5): paragraphs by file patterns, of which the last that matches counts."""

    def __init__(self, folder: Path) -> None:
        self.paragraphs: list[dict[str, list[str]]] = []
        path = next(
            (path for path in (folder / "copyright", folder / "copyright.gz") if path.is_file()),
            None,
        )
        if path is not None:
            content = (
                gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            )
            text = content.decode(errors="replace")
            self.paragraphs = [
                each for each in map(_fields, re.split(r"\n\s*\n", text)) if "files" in each
            ]

    def of(self, inside: str) -> dict[str, list[str]]:
        """Fields of the paragraph of a file, with "exact" if it is named without a wildcard; empty if there is none."""
        best: dict[str, list[str]] = {}
        for paragraph in self.paragraphs:
            for pattern in " ".join(paragraph["files"]).split():
                if matches(pattern.removeprefix("./"), inside):
                    best = paragraph | ({} if re.search(r"[*?]", pattern) else {"exact": ["yes"]})
        return best


def _fields(block: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    key = ""
    for line in block.splitlines():
        start = re.match(r"^([A-Za-z][A-Za-z-]*):\s*(.*)$", line)
        if start:
            key = start[1].lower()
            found[key] = [start[2].strip()] if start[2].strip() else []
        elif key and line.startswith((" ", "\t")):
            found[key].append(line.strip())
    return found


def matches(pattern: str, inside: str) -> bool:
    """Whether a pattern of the source package means this file of the binary one: its end does, since installing moves files."""
    if pattern == "*":
        return True
    parts = pattern.split("/")
    tails = [parts[first:] for first in range(len(parts)) if parts[0] != "debian"]
    told = [
        tail
        for tail in tails
        if (len(tail) > 1 or not re.search(r"[*?]", tail[0]))
        and not all(set(part) <= set("*?") for part in tail)
    ]
    return any(fnmatch.fnmatchcase("/" + inside, "*/" + "/".join(tail)) for tail in told)


def _holders(paragraph: dict[str, list[str]]) -> list[str]:
    lines = [
        re.sub(r"^(©|\(c\))?\s*[\d,\s–-]*,?\s*", "", line, flags=re.I)
        for line in paragraph.get("copyright", [])
    ]
    return [
        name
        for name in (re.sub(r"\s*[<(][^>)]*[@/][^>)]*[>)]", "", line).strip(" ,") for line in lines)
        if name
    ]

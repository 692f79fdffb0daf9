"""GiantSteps key: keys of electronic dance music, 24 classes, previews of two minutes.

=========  =========================================================================================
size       test: 604 previews of about 120 s; train and valid: 1,159 of the 1,486 previews of the
           MTG collection
audio      mp3, Beatport's low-fidelity previews (LOFI)
origin     https://github.com/GiantSteps/giantsteps-key-dataset and
           https://github.com/GiantSteps/giantsteps-mtg-key-dataset
licence    annotations as stated in the repositories; the previews belong to their labels
citation   Knees, Faraldo, Herrera, Vogl, Böck, Hörschläger, Le Goff: Two data sets for tempo
           estimation and key detection in electronic dance music
           annotated from user corrections. ISMIR 2015
files      the two repositories below the root, under their own names (with or without a branch or
           commit behind), each with audio/ID.LOFI.mp3
=========  =========================================================================================

One variant, ``jukemir``: 923 / 236 / 604. Test is the original collection, by the names in its md5
folder. Train and valid are the tracks of the MTG collection that are annotated with confidence 2
and one key only. Their split follows from the artists in ``annotations/beatport_metadata.txt``: the
sha1 of an artist's name in lower case, as one number, modulo 116; 0 to 99 train, the rest valid;
then, twice, in the table's order, every artist who appears on a track with an artist of valid goes
to valid as well. All of this is derived from files of the repository; nothing is packaged. What
cannot be derived are artists of the 604 test tracks: the repository has none, so whether artists
are shared with train is not known.

The score is MIREX's: same key 1, a fifth above in the same mode 0.5, relative 0.3, parallel 0.2,
mean over tracks. A track is one clip here; JukeMIR cuts pieces of 30 s and chooses on valid how to
combine their predictions.

Traps
-----
* Keys are written with sharps in one collection and flats in the other: Db, Eb, Gb, Ab, Bb are used
  throughout.
* mirdata's giantsteps_key is a revision with 600 tracks, not these 604.
* The audio has to be fetched track by track; each repository holds an md5 for each of its files.
"""

import hashlib
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant, first_file, read_table
from patchifier.io import read_text
from patchifier.tasks import Task

FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    clips = _development(_repository(root, "giantsteps-mtg-key-dataset")) + _test(
        _repository(root, "giantsteps-key-dataset")
    )
    return Dataset("giantsteps-key", tuple(clips), Task("one-of", KEYS, metric="key_score"))


def _repository(root: Path, name: str) -> Path:
    """Find the folder of a repository: its name alone, or followed by a branch or a commit."""
    found = sorted(
        path for path in [root / name, *root.glob(f"{name}-*")] if (path / "annotations").is_dir()
    )
    if not found:
        raise RequestError(
            f"{root} holds no folder {name} with annotations in it, expected a copy of "
            f"https://github.com/GiantSteps/{name}."
        )
    return found[0]


def _development(repository: Path) -> list[Clip]:
    """List train and valid: the tracks of the MTG collection with one certain key."""
    tables = repository / "annotations"
    rows = read_table(tables / "beatport_metadata.txt", ("ID", "ARTIST"), delimiter="\t")
    artists_of = {row["ID"]: artists(row["ARTIST"]) for row in rows}
    held = valid_artists(list(artists_of.values()))
    clips = []
    columns = ("ID", "MANUAL KEY", "C")
    for row in read_table(tables / "annotations.txt", columns, delimiter="\t"):
        if row["C"] != "2" or "/" in row["MANUAL KEY"]:
            continue
        if row["ID"] not in artists_of:
            raise RequestError(
                f"beatport_metadata.txt has no row for track {row['ID']} of annotations.txt, "
                "expected one for each."
            )
        names = artists_of[row["ID"]]
        split = "valid" if held & set(names) else "train"
        group = ", ".join(sorted(name.lower() for name in names))
        clips.append(_clip(repository, row["ID"], row["MANUAL KEY"], split, group=group))
    return clips


def artists(text: str) -> list[str]:
    """Return the names of the artists of a track, which are written in one field."""
    return [name.strip() for name in text.split(",")]


def valid_artists(tracks: list[list[str]]) -> set[str]:
    """Return the artists whose tracks validate.

    Chosen by a hash of the name, then collaborators, in two passes in the table's order.
    """
    everybody = {name for names in tracks for name in names}
    hashes = {name: hashlib.sha1(name.lower().encode()).hexdigest() for name in everybody}
    held = {name for name in everybody if int(hashes[name], 16) % 116 >= 100}
    for _hop in range(2):
        for names in tracks:
            if held & set(names):
                held |= set(names)
    return held


def _test(repository: Path) -> list[Clip]:
    """List the original collection, by the names in its md5 folder."""
    names = (path.name.split(".")[0] for path in (repository / "md5").glob("*.md5"))
    tracks = sorted(name for name in names if name.isdigit())
    if not tracks:
        raise RequestError(
            f"{repository / 'md5'} holds no .md5 files, expected one for each of the 604 tracks."
        )
    clips = []
    for track in tracks:
        path = repository / "annotations" / "key" / f"{track}.LOFI.key"
        if not path.is_file():
            raise RequestError(
                f"{path} is not there, expected the key of each track in {repository / 'md5'}."
            )
        text = read_text(path, errors="replace")
        clips.append(_clip(repository, track, text, "test"))
    return clips


def _clip(repository: Path, track: str, text: str, split: str, *, group: str | None = None) -> Clip:
    audio = [repository / "audio" / f"{track}.LOFI{suffix}" for suffix in (".mp3", ".wav")]
    name = f"{'test' if split == 'test' else 'mtg'}/{track}"
    return Clip(name, first_file(audio), split=split, group=group, target=key(text))


def key(text: str) -> str:
    """Spell a key, such as "D# minor", as in `KEYS`: "Eb minor"; refuse what is none."""
    parts = text.split()
    if len(parts) == 2:
        tonic = parts[0][:1].upper() + parts[0][1:]
        name = f"{FLATS.get(tonic, tonic)} {parts[1].lower()}"
        if name in KEYS:
            return name
    raise RequestError(f"{text!r} is no key, expected a tonic and a mode, such as 'D# minor'.")


_GITHUB = "https://github.com/GiantSteps"
_COMMITS = {
    "giantsteps-key-dataset": "c8cb8aad2cb53f165be51ea099d0dc75c64a844f",
    "giantsteps-mtg-key-dataset": "fd7b8c584f7bd6d720d170c325a6d42c9bf75a6b",
}

SHEET = Sheet(
    name="giantsteps-key",
    title="GiantSteps key",
    home=f"{_GITHUB}/giantsteps-key-dataset",
    licence="annotations as stated in the repositories; previews belong to their labels",
    citation="Knees, Faraldo, Herrera et al.: Two data sets for tempo estimation and key "
    "detection in electronic dance music. ISMIR 2015",
    read=read,
    variants={
        "jukemir": Variant(
            "24 keys, weighted score; train and valid from the MTG collection",
            {"train": 923, "valid": 236, "test": 604},
        )
    },
    remotes=tuple(
        Remote(f"{name}.zip", (f"{_GITHUB}/{name}/archive/{commit}.zip",))
        for name, commit in _COMMITS.items()
    ),
    archives=tuple(Archive(f"{name}.zip", into=".") for name in _COMMITS),
    steps=(
        "The audio is fetched track by track into audio/ of each repository: for the names in its "
        "md5 folder, ID.LOFI.mp3 from http://www.cp.jku.at/datasets/giantsteps/backup/ "
        "(giantsteps-key-dataset) and http://www.cp.jku.at/datasets/giantsteps/mtg_key_backup/ "
        "(giantsteps-mtg-key-dataset); each repository has a script for it. The archives of the "
        "repositories have no fixed sha256."
    ),
)

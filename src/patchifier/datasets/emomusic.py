"""EmoMusic (1000 Songs, MediaEval 2013).

744 clips of 45 s, each rated for arousal and valence, the paper's emotion task.

=========  =========================================================================================
size       744 songs, one clip each, 409 artists; ids 2 to 1000 with 256 gaps
audio      mp3, 44.1 kHz, 44.6 to 45.0 s
origin     songs of the Free Music Archive, rated by at least ten people each on a scale of 1 to 9;
           https://cvml.unige.ch/databases/emoMusic/
licence    annotations: for research; songs: Creative Commons, song by song
citation   Soleymani, Caro, Schmidt, Sha, Yang: 1000 songs for emotional analysis of music. CrowdMM
           2013.
           The split: Castellon, Donahue, Liang: Codified audio language modeling learns useful
           representations for MIR. ISMIR 2021 (JukeMIR)
files      songs_info.csv and static_annotations.csv in annotations/ or the root;
           clips_45seconds/ID.mp3
=========  =========================================================================================

One variant, ``jukemir``: 504 / 115 / 125. The published evaluation set is the test; a development
song is train or valid by its artist: lower case, everything but ASCII letters and white space
deleted, white space collapsed, the sha1 of that as a number, modulo 10; 0 to 7 train, 8 and 9
valid.

The target is [arousal, valence], standardised with mean and deviation of the 619 development songs
(constants below); the ratings themselves are in `info`. Score R2 over the whole test set at once;
predicting the development mean gives -0.019 (arousal) and -0.026 (valence).

Traps
-----
* The split keeps artists apart between train and valid only: 66 of the 125 test clips share a
  (normalised) artist with train (53) or valid (13). The other 59 form the subset ``artist-clean``,
  a second figure to state beside the official one.
* The paper's 69.9 for JukeMIR is its mean over four tasks; on EmoMusic JukeMIR has 66.9.
* DEAM's table of the same songs has arousal and valence exchanged: it is refused here, since its
  columns have other names.
* Times are written min.sec with trailing zeros lost: 0.2 is 20 s, 1.05 is 65 s, 2 is two minutes.
  They say where the clip was cut from the song; the file is the clip.
* Values carry stray TABs; artists and titles are not all ASCII; the archive may hold clips without
  ratings, so the tables are read, not the folder. Ids have no padding.
"""

import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.sheet import (
    Archive,
    Remote,
    Sheet,
    Variant,
    first_file,
    fullest,
    read_table,
)
from patchifier.tasks import Task

NAMES = ("arousal", "valence")
MEAN = (4.756063166397415, 4.973864620355412)  # of the 619 development songs' ratings
DEVIATION = (1.3860096547884184, 1.2546183995244047)  # population
SONG_COLUMNS = (
    "song_id",
    "Artist",
    "Song title",
    "start of the segment (min.sec)",
    "end of the segment (min.sec)",
    "Genre",
    "Mediaeval 2013 set",
)
RATING_COLUMNS = ("song_id", "mean_arousal", "std_arousal", "mean_valence", "std_valence")


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    tables = fullest([root / "annotations", root], ["songs_info.csv", "static_annotations.csv"])
    ratings = {
        _number(row): row for row in read_table(tables / "static_annotations.csv", RATING_COLUMNS)
    }
    clips = [
        _clip(root, song, ratings, tables)
        for song in read_table(tables / "songs_info.csv", SONG_COLUMNS)
    ]
    developed = {clip.group for clip in clips if clip.split != "test"}
    marked = (
        replace(clip, subsets=() if clip.group in developed else ("artist-clean",))
        for clip in clips
    )
    return Dataset("emomusic", tuple(marked), Task("numbers", NAMES))


def _clip(
    root: Path, song: dict[str, str], ratings: dict[int, dict[str, str]], tables: Path
) -> Clip:
    number = _number(song)
    if number not in ratings:
        raise RequestError(
            f"{tables / 'static_annotations.csv'} has no row for song {number} of songs_info.csv, "
            "expected one for each."
        )
    rating = ratings[number]
    raw = [_rating(rating[f"mean_{name}"], number, tables) for name in NAMES]
    info = {"artist": song["Artist"], "title": song["Song title"], "genre": song["Genre"]}
    info |= {name: rating[f"mean_{name}"] for name in NAMES}
    info |= {f"{name}_deviation": rating[f"std_{name}"] for name in NAMES}
    info["cut_from_s"] = f"{seconds(song['start of the segment (min.sec)']):g}"
    info["cut_to_s"] = f"{seconds(song['end of the segment (min.sec)']):g}"
    files = [root / "clips_45seconds" / f"{number}{suffix}" for suffix in (".mp3", ".wav")]
    standardised = zip(raw, MEAN, DEVIATION, strict=True)
    return Clip(
        id=str(number),
        path=first_file(files),
        split=split(song["Artist"], song["Mediaeval 2013 set"]),
        group=normalised(song["Artist"]) or f"song {number}",
        target=[(value - mean) / deviation for value, mean, deviation in standardised],
        info=info,
    )


def _number(row: dict[str, str]) -> int:
    """Return the id of a song, a number since the names of the files have no padding."""
    if not row["song_id"].isdecimal():
        raise RequestError(f"a song_id is {row['song_id']!r}, expected a whole number.")
    return int(row["song_id"])


def _rating(text: str, number: int, tables: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 9:
        raise RequestError(
            f"{tables / 'static_annotations.csv'} rates song {number} as {text!r}, expected a "
            "number from 1 to 9."
        )
    return value


def normalised(artist: str) -> str:
    """Normalise an artist's name as the split requires.

    Lower case, ASCII letters and single spaces, the rest deleted.
    """
    return " ".join(re.sub(r"[^a-z\s\x1c-\x1f]", "", artist.lower(), flags=re.ASCII).split())


def split(artist: str, published: str) -> str:
    """Return the split of a song by its artist and set, "development" or "evaluation"."""
    if published not in ("development", "evaluation"):
        raise RequestError(
            f"the published set of a song is {published!r}, expected development or evaluation."
        )
    if published == "evaluation":
        return "test"
    digest = hashlib.sha1(normalised(artist).encode()).hexdigest()
    return "train" if int(digest, 16) % 10 < 8 else "valid"


def seconds(text: str) -> float:
    """Read a time written min.sec, whose trailing zeros are lost.

    0.2 is 20 s, 1.05 is 65 s, 2 is 120 s.
    """
    parts = re.fullmatch(r"(\d+)(?:\.(\d{1,2}))?", text)
    if not parts or int((parts[2] or "0").ljust(2, "0")) > 59:
        raise RequestError(
            f"{text!r} is no time written min.sec, expected one such as 0.48 or 1.2."
        )
    return 60.0 * int(parts[1]) + int((parts[2] or "0").ljust(2, "0"))


_HOST = "https://cvml.unige.ch/databases/emoMusic"
_SHA256 = {
    "annotations.tar.gz": "e0cb0b06e1b0ce7f04b1572fc410937699b7fad9dae67ddaa745f06cda4b0b33",
    "clips_45sec.tar.gz": "3994a5d5fefc27f9540d1a69cd7f1294c68e6cb311ce49765021e2e9c7a1057b",
}

SHEET = Sheet(
    name="emomusic",
    title="EmoMusic (1000 Songs, MediaEval 2013)",
    home=f"{_HOST}/",
    licence="annotations for research; songs Creative Commons, from the Free Music Archive",
    citation="Soleymani, Caro, Schmidt, Sha, Yang: 1000 songs for emotional analysis of music. "
    "CrowdMM 2013",
    read=read,
    variants={
        "jukemir": Variant(
            "arousal and valence, standardised; JukeMIR's split, subset artist-clean",
            {"train": 504, "valid": 115, "test": 125},
        )
    },
    remotes=tuple(
        Remote(name, (f"{_HOST}/{name}", f"{_HOST.replace('https', 'http')}/{name}"), sha256)
        for name, sha256 in _SHA256.items()
    ),
    archives=(Archive("annotations.tar.gz", into="annotations"), Archive("clips_45sec.tar.gz")),
    steps=(
        f"If the site asks for a form, fill it in at {_HOST}/, put annotations.tar.gz and "
        "clips_45sec.tar.gz in the root and run 'patchifier fetch' again. "
        "A copy with the same split and labels is https://huggingface.co/datasets/m-a-p/EMO (wav "
        "and JSONL): give its .jsonl to patchifier as a manifest."
    ),
)

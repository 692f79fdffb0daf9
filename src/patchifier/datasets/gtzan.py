"""GTZAN: 1,000 tracks of 30 s in ten genres, the paper's genre task.

=========  =========================================================================================
size       1,000 tracks, 100 a genre; 1.2 GB
audio      22,050 Hz, mono, 16-bit PCM; typically 661,794 samples (30.013 s), lengths vary
origin     collected by George Tzanetakis (2000-2001); http://marsyas.info/downloads/datasets.html
           (no longer answers)
licence    none stated; for research, never pass the audio on
citation   Tzanetakis, Cook: Musical genre classification of audio signals. IEEE TSAP 10(5), 2002.
           The split: Kereliuk, Sturm, Larsen: Deep learning and music adversaries. IEEE TMM 17(11),
           2015
files      GENRE/GENRE.000NN.wav (or .au) in the root, genres/, genres_original/,
           Data/genres_original/ or gtzan_genre/genres/
=========  =========================================================================================

Variants. ``fault-filtered``, the default: 443 / 197 / 290 tracks, 70 removed (repetitions, wrong
labels, distortion) and artists kept apart by hand; the only one whose figures can be compared.
``folds``: ten folds over all 1,000 tracks, stratified by genre, drawn by a hash of the track's
name.

**The folds have no artist filter and keep the faults**: the same recording, artist (35 reggae
tracks are Bob Marley) and album are in both train and test, and figures are far too high (on one
encoder 92.5 % against 79.7 % on the fault-filtered split). They are included because older papers
report them.

Traps
-----
* jazz.00054 is in the fault-filtered train list, and intact in the original archive: 443 train
  tracks. In some mirrors it is broken or left out: 442. Both are accepted; `patchifier check` tells
  which; valid and test are the same.
* Mirrors carry 1,000 macOS files such as ``._blues.00000.wav``; clips are found by name here, never
  by a pattern.
* The majority class is right for 32 of 290 test tracks (11.0 %); one track is 0.34 points.
* Fourteen pairs of files are the same bytes; rock.00016 and metal.00058 are one recording under two
  genres.
"""

import hashlib
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant, first_file, fullest, packaged
from patchifier.tasks import Task

GENRES = (
    "blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock",
)  # fmt: skip
LAYOUTS = (".", "genres", "genres_original", "Data/genres_original", "gtzan_genre/genres")
FOLDS = 10


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    base = fullest([root / layout for layout in LAYOUTS], GENRES)
    if not any((base / genre).is_dir() for genre in GENRES):
        raise RequestError(
            f"{root} holds no genre folders, expected {', '.join(GENRES[:3])}, ... in it or in "
            f"{', '.join(LAYOUTS[1:])}."
        )
    task = Task("one-of", GENRES)
    if variant == "folds":
        clips = [_clip(base, track, fold=fold) for track, fold in folds().items()]
    else:
        rows = packaged("gtzan_fault_filtered.csv")
        clips = [_clip(base, row["track_id"], split=row["split"]) for row in rows]
    return Dataset("gtzan", tuple(clips), task)


def folds() -> dict[str, int]:
    """Return the fold of each of the 1,000 tracks.

    In a genre, the track of rank r by sha256("folds/TRACK") is in fold r modulo 10.
    """
    dealt: dict[str, int] = {}
    for genre in GENRES:
        tracks = sorted(
            (f"{genre}.{number:05d}" for number in range(100)),
            key=lambda track: hashlib.sha256(f"folds/{track}".encode()).digest(),
        )
        dealt |= {track: rank % FOLDS for rank, track in enumerate(tracks)}
    return dict(sorted(dealt.items()))


def _clip(base: Path, track: str, *, split: str | None = None, fold: int | None = None) -> Clip:
    genre = track.split(".")[0]
    path = first_file([base / genre / f"{track}{suffix}" for suffix in (".wav", ".au")])
    return Clip(track, path, split=split, fold=fold, target=genre)


SHEET = Sheet(
    name="gtzan",
    title="GTZAN genre collection",
    home="http://marsyas.info/downloads/datasets.html",
    licence="none stated; research use only",
    citation="Tzanetakis, Cook: Musical genre classification of audio signals. IEEE TSAP 10(5), "
    "2002; split by Kereliuk, Sturm, Larsen, IEEE TMM 17(11), 2015",
    read=read,
    variants={
        "fault-filtered": Variant(
            "genre, 70 faulty tracks removed, artists kept apart",
            {"train": 443, "valid": 197, "test": 290},
        ),
        "folds": Variant(
            "genre, stratified 10-fold over all tracks; no artist filter: figures come out too "
            "high",
            {"": 1_000},
        ),
    },
    remotes=(
        Remote(
            "genres.tar.gz",
            ("http://opihi.cs.uvic.ca/sound/genres.tar.gz",),
            "24347e0223d2ba798e0a558c4c172d9d4a19c00bb7963fe055d183dadb4ef2c6",
            dead="the publisher's server has not answered since 2022",
        ),
    ),
    archives=(Archive("genres.tar.gz", into="."),),
    known_bad={
        "jazz/jazz.00054.wav": "sound in the original archive, but broken or left out in some "
        "mirrors: then train has 442 tracks, not 443"
    },
    steps=(
        "Get one of these copies by hand: (1) the Internet Archive's capture of the original, "
        "https://web.archive.org/web/20211207012050/http://opihi.cs.uvic.ca/sound/genres.tar.gz "
        "(its sha256 must be the one stated); (2) https://huggingface.co/datasets/marsyas/gtzan, "
        "data/genres.tar.gz; (3) Kaggle, andradaolteanu/gtzan-dataset-music-genre-classification "
        "(genres_original, jazz.00054 broken). Unpack it in the root."
    ),
)

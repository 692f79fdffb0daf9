"""MTG-Jamendo: 55,701 full tracks under Creative Commons licences, tagged by their uploaders.

=========  =========================================================================================
size       55,701 tracks of more than 30 s; audio 508 GB (152 GB for mood/theme alone)
audio      mp3, 320 kbps; or low-quality mono copies, ID.low.mp3
origin     Jamendo; https://github.com/MTG/mtg-jamendo-dataset
licence    audio: Creative Commons, track by track (audio_licenses.txt); metadata: CC BY-NC-SA 4.0
citation   Bogdanov, Won, Tovstogan, Porter, Serra: The MTG-Jamendo dataset for automatic music
           tagging. ML4MD workshop, ICML 2019
files      data/splits/split-0/autotagging_SUBSET-{train,validation,test}.tsv of the repository, in
           the root or in mtg-jamendo-dataset/;
           audio 00/ID.mp3 to 99/ID.mp3 in the root, audio/, raw_30s/ or raw_30s/audio/
=========  =========================================================================================

Variants, all of split 0: ``top50tags`` (the default; 50 tags), ``genre`` (87), ``instrument`` (40)
and ``moodtheme`` (56). Published sizes of the subsets before the splits dropped rare tags are
54,380, 55,215, 25,135 and 18,486 tracks; per split they are not stated, so `patchifier check`
compares files with the lists alone. The group of a clip is its artist. Macro ROC-AUC and macro
average precision.

Traps
-----
* A row has as many tag columns as it has tags: not a table that a CSV reader with a header can
  take.
* Tags keep their category (``genre---rock``), since a name may occur in two.
* Tracks are whole songs, some of them over ten minutes long.
"""

from dataclasses import replace
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.sheet import Remote, Sheet, Variant, first_file, fullest, read_rows
from patchifier.tasks import Task

COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
FILES = {"train": "train", "valid": "validation", "test": "test"}
AUDIO = (".", "audio", "raw_30s", "raw_30s/audio")
HUNDRED = tuple(f"{number:02d}" for number in range(100))


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    lists = fullest(
        [root / "data/splits/split-0", root / "mtg-jamendo-dataset/data/splits/split-0"],
        [f"autotagging_{variant}-train.tsv"],
    )
    audio = fullest([root / folder for folder in AUDIO], HUNDRED)
    clips: list[Clip] = []
    for split, name in FILES.items():
        for clip in _clips(lists / f"autotagging_{variant}-{name}.tsv", split):
            path = audio / clip.path
            clips.append(replace(clip, path=first_file([path, path.with_suffix(".low.mp3")])))
    tags = {tag for clip in clips for tag in clip.target}
    return Dataset("mtg-jamendo", tuple(clips), Task("many-of", tuple(sorted(tags))))


def _clips(path: Path, split: str) -> list[Clip]:
    """Read the clips of one list, with the paths in it."""
    header, *rows = list(read_rows(path, delimiter="\t")) or [[]]
    if header != COLUMNS:
        raise RequestError(
            f"{path} starts with {', '.join(header) or 'nothing'}, expected the columns "
            f"{', '.join(COLUMNS)}."
        )
    if not rows:
        raise RequestError(f"{path} has no rows, expected the list as published.")
    clips = []
    for number, row in enumerate(rows, 2):
        tags = [tag for tag in row[5:] if tag]
        if len(row) < len(COLUMNS) or not tags or not all("---" in tag for tag in tags):
            raise RequestError(
                f"{path}, row {number}: expected five fields and then tags such as genre---rock."
            )
        info = {"album": row[2], "duration_s": row[4]}
        clips.append(Clip(row[0], row[3], split=split, group=row[1], target=tags, info=info))
    return clips


SHEET = Sheet(
    name="mtg-jamendo",
    title="MTG-Jamendo",
    home="https://github.com/MTG/mtg-jamendo-dataset",
    licence="audio: Creative Commons, track by track; metadata: CC BY-NC-SA 4.0",
    citation="Bogdanov, Won, Tovstogan, Porter, Serra: The MTG-Jamendo dataset for automatic "
    "music tagging. ICML 2019 workshop",
    read=read,
    variants={
        "top50tags": Variant("the 50 commonest tags, split 0"),
        "genre": Variant("87 genres, split 0"),
        "instrument": Variant("40 instruments, split 0"),
        "moodtheme": Variant("56 moods and themes, split 0"),
    },
    remotes=tuple(
        Remote(
            f"data/splits/split-0/autotagging_{subset}-{name}.tsv",
            (
                "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data/splits/"
                f"split-0/autotagging_{subset}-{name}.tsv",
            ),
        )
        for subset in ("top50tags", "genre", "instrument", "moodtheme")
        for name in FILES.values()
    ),
    steps=(
        "The audio (508 GB) is fetched by the repository's own script: git clone "
        "https://github.com/MTG/mtg-jamendo-dataset, then "
        "python scripts/download/download.py --dataset raw_30s --type audio DIR --unpack --remove."
    ),
)

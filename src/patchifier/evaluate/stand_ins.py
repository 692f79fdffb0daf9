"""Stand-ins of the paper's data sets: the bundled clips under the names and tables of each.

For a rehearsal of the whole script. Files, folders and tables are as published; sounds are excerpts
of the bundled clips, and **labels are drawn at random**. So every score is that of chance in
expectation, whatever the model: accuracy 10 %, R2 0 or less.

Folds 0 and 1 of the bundled clips stand for MagnaTagATune, fold 2 for GTZAN, fold 3 for EmoMusic:
no track is in two of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from patchifier import audio, datasets
from patchifier.datasets import STAND_IN, demo
from patchifier.datasets.emomusic import RATING_COLUMNS, SONG_COLUMNS
from patchifier.datasets.gtzan import GENRES
from patchifier.datasets.mtat import TAGS188
from patchifier.datasets.sheet import packaged
from patchifier.io import Progress, ProgressOf, write_text
from patchifier.seeding import generator

MTAT_S, TASK_S = 10.0, 2.3  # seconds of each clip: of pre-training, of the tasks
GENRE_TRACKS = 100
INFO_COLUMNS = (
    "clip_id", "track_number", "title", "artist", "album", "url", "segmentStart", "segmentEnd",
    "original_url", "mp3_path",
)  # fmt: skip
WARNING = """This folder is a stand-in for {title}, for a rehearsal.
Its sounds are excerpts of the clips that come with patchifier (licences: {notice}).
Its labels are drawn at random. No figure computed from it is a result.
"""


def build(root: Path, *, progress: ProgressOf) -> None:
    """Write the folders mtat, gtzan and emomusic (110 MB) below a root; complete ones stay."""
    for name, (fill, folds) in {
        "mtat": (mtat, (0, 1)),
        "gtzan": (gtzan, (2,)),
        "emomusic": (emomusic, (3,)),
    }.items():
        if not (root / name / STAND_IN).exists():  # which is written last
            fill(root / name, folds, progress(f"stand-in of {name}"))
            title = datasets.find_sheet(name)[0].title
            warning = WARNING.format(title=title, notice=demo.ROOT / "NOTICE.md")
            write_text(root / name / STAND_IN, warning)


def mtat(root: Path, folds: Sequence[int], progress: Progress) -> None:
    """MagnaTagATune: folders 0 to f, 16 kHz mp3, both tables; a few tags a clip by chance."""
    clips = [clip for clip in demo.load().clips if clip.fold in folds]
    info: list[Sequence[str]] = [INFO_COLUMNS]
    tagged: list[Sequence[str]] = [("clip_id", *TAGS188, "mp3_path")]
    for number, clip in enumerate(clips):
        draw = generator(0, "stand-in mtat", number)
        artist, album = f"stand_in_{number // 4}", f"album_{number // 2}"
        path = f"{number % 16:x}/{artist}-{album}-{1 + number % 2:02d}-{clip.id}-0-29.mp3"
        url = f"http://www.magnatune.com/artists/albums/{album}/"
        about = (clip.id, artist, album, url, "0", "29", "", path)
        tags = draw.random(len(TAGS188)) < 4 / len(TAGS188)
        info.append((str(number + 2), str(1 + number % 2), *about))
        tagged.append((str(number + 2), *("1" if tag else "0" for tag in tags), path))
        _write_mp3(root / path, audio.load(clip.path, sample_rate=16_000, end_s=MTAT_S), 16_000)
        progress(number + 1, len(clips), path)
    _write_table(root / "clip_info_final.csv", info, between="\t")
    _write_table(root / "annotations_final.csv", tagged, between="\t")


def gtzan(root: Path, folds: Sequence[int], progress: Progress) -> None:
    """GTZAN: genres/GENRE/GENRE.000NN.wav, 22,050 Hz; which excerpt has which genre is chance."""
    excerpts = _excerpts(folds, len(GENRES) * GENRE_TRACKS, 22_050, "stand-in gtzan")
    for number, excerpt in enumerate(excerpts):
        name = f"{GENRES[number // GENRE_TRACKS]}.{number % GENRE_TRACKS:05d}"
        path = root / "genres" / name.split(".")[0] / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.save(path, excerpt, 22_050)
        progress(number + 1, len(GENRES) * GENRE_TRACKS, name)


def emomusic(root: Path, folds: Sequence[int], progress: Progress) -> None:
    """EmoMusic: clips_45seconds/ID.mp3 of the published songs; ratings from 1 to 9 by chance."""
    songs = packaged("emomusic_jukemir.csv")
    excerpts = _excerpts(folds, len(songs), 44_100, "stand-in emomusic")
    ratings = generator(0, "stand-in ratings", 0).uniform(1.5, 8.5, (len(songs), 2))
    info, rated = [("song_id", "file_name", *SONG_COLUMNS[1:])], [RATING_COLUMNS]
    for number, (song, excerpt) in enumerate(zip(songs, excerpts, strict=True)):
        name, label = song["song_id"], f"Song {song['song_id']}"
        about = (song["artist"].replace(",", " "), label, "0.0", "0.45", "Rock")
        info.append((name, f"{name}.mp3", *about, song["mediaeval2013_set"]))
        arousal, valence = (f"{value:.4g}" for value in ratings[number])
        rated.append((name, arousal, "1", valence, "1"))
        _write_mp3(root / "clips_45seconds" / f"{name}.mp3", excerpt, 44_100)
        progress(number + 1, len(songs), label)
    _write_table(root / "annotations" / "songs_info.csv", info, between=",")
    _write_table(root / "annotations" / "static_annotations.csv", rated, between=",")


def _excerpts(folds: Sequence[int], count: int, rate: int, purpose: str) -> Iterator[np.ndarray]:
    """Yield excerpts (S,) of the bundled clips of some folds, each clip and start by chance."""
    clips = [clip for clip in demo.load().clips if clip.fold in folds]
    waveforms = [audio.load(clip.path, sample_rate=rate) for clip in clips]
    length = round(TASK_S * rate)
    for number in range(count):
        draw = generator(0, purpose, number)
        waveform = waveforms[draw.integers(len(waveforms))]
        start = int(draw.integers(len(waveform) - length))
        yield waveform[start : start + length]


def _write_mp3(path: Path, waveform: np.ndarray, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio.to_mp3(waveform, rate))


def _write_table(path: Path, rows: Sequence[Sequence[str]], *, between: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(between.join(row) + "\n" for row in rows))

"""Published data sets as small trees: the real layout, columns and names, and made-up sound that carries the labels.

Each builder takes an empty folder and gives it back. Lengths are arguments, so that a quick test stays quick and a slow one can learn something.
Import it as ``from published import gtzan``: pytest puts this folder on the path.
"""

import csv
import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

import patchifier

SPLITS_FOLDER = Path(patchifier.__file__).parent / "datasets" / "published"
JUNK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ".ljust(
    211, b"\x00"
)  # what macOS leaves beside each file of an archive, 211 bytes
GENRES = "blues classical country disco hiphop jazz metal pop reggae rock".split()
GTZAN_LAYOUTS = ["", "genres", "genres_original", "Data/genres_original", "gtzan_genre/genres"]
FOLDERS = "0123456789abcdef"


@cache
def _hiss():
    return np.random.default_rng(0).standard_normal(2**21, dtype=np.float32)


def sound(hz, *, seconds, rate, seed=0, tone=0.3, hiss=0.02):
    """A tone with an octave above it, and a little hiss that differs by seed: (S,) float32."""
    samples = round(seconds * rate)
    time_s = np.arange(samples, dtype=np.float32) / rate
    start = seed * 7919 % 2**20
    noise = np.resize(_hiss()[start : start + min(samples, 2**20)], samples)
    return (
        tone * np.sin(2 * np.pi * hz * time_s)
        + tone / 3 * np.sin(4 * np.pi * hz * time_s)
        + hiss * noise
    ).astype(np.float32)


def write(path, samples, rate, *, form=""):
    """Write sound in the form that the name says, or in another one under that name ("wav" in a file called .mp3 reads all the same)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = (form or path.suffix.removeprefix(".")).upper()
    subtype = "MPEG_LAYER_III" if kind == "MP3" else "PCM_16"
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)


def rows_of(name):
    with (SPLITS_FOLDER / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tree(root):
    """Every file below a folder and its bytes: to see that nothing was changed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def twin(root, other):
    """The same tree once more, by hard links, so that a thousand files cost nothing: change files in it by :func:`replace` alone."""
    return Path(shutil.copytree(root, other, copy_function=os.link))


def replace(path, content):
    """Give a file of a twin another content; the original keeps its own."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


# --- MagnaTagATune ---

CLIP_INFO = (
    "clip_id track_number title artist album url segmentStart segmentEnd original_url mp3_path"
).split()
BACH = [
    "2", "01", "BWV54 - I Aria", "American Bach Soloists", "J.S. Bach Solo Cantatas", "http://www.magnatune.com/artists/albums/abs-solocantatas/", "30", "59",
    "http://he3.magnatune.com/all/01--BWV54%20-%20I%20Aria--ABS.mp3", "f/american_bach_soloists-j_s__bach_solo_cantatas-01-bwv54__i_aria-30-59.mp3",
]  # fmt: skip
LVX = [
    "14", "01", "Contimune", "LVX Nova", "LVX Nova", "http://www.magnatune.com/artists/albums/lvxnova-lvxnova/", "30", "59",
    "http://he3.magnatune.com/all/01--Contimune--LVX%20Nova.mp3", "c/lvx_nova-lvx_nova-01-contimune-30-59.mp3",
]  # fmt: skip
LVX_UNTAGGED = ["19", *LVX[1:6], "175", "204", LVX[8], LVX[9].replace("30-59", "175-204")]
PHANTASM = [
    "215", "01", "A Solfing Song (Tallis)", "Phantasm", "Four Temperaments", "http://www.magnatune.com/artists/albums/phantasm-temper/", "30", "59", "", "",
]  # fmt: skip
NORINE = [
    "35644", "08", "Gently", "Norine Braun", "Now and Zen", "http://www.magnatune.com/artists/albums/norine-zen/", "117", "146",
    "http://he3.magnatune.com/all/08--Gently--Norine%20Braun.mp3", "6/norine_braun-now_and_zen-08-gently-117-146.mp3",
]  # fmt: skip
STYLES = [
    ["classical", "strings", "slow"],
    ["techno", "electronic", "beat", "fast"],
    ["rock", "guitar", "drums", "loud"],
    ["electro"],
    [],
]


def mtat_row(number, folder, index):
    album = f"album_{folder}_{index // 2}"
    path = f"{folder}/band_{folder}-{album}-01-piece_{index}-0-29.mp3"
    url = f"http://www.magnatune.com/artists/albums/{album}/"
    names = [str(number), "01", f"Piece {index}", f"Band {folder}", album, url]
    return [*names, "0", "29", "http://he3.magnatune.com/all/x.mp3", path]


def mtat(
    root,
    *,
    per_folder=3,
    seconds=1.0,
    quoted=True,
    folder="",
    form="mp3",
):
    """51 usable clips (with 3 a folder) in 16 folders, one of the empty files, one row without audio; tags by style, some clips without any."""
    made = [
        (mtat_row(1000 + 16 * index + number, name, index), (number + index) % 5)
        for index in range(per_folder)
        for number, name in enumerate(FOLDERS)
    ]
    named = [
        (BACH, ["classical", "strings", "opera", "violin"], 0),
        (LVX, ["techno"], 1),
        (LVX_UNTAGGED, [], 4),
    ]
    clips = named + [(row, STYLES[style], style) for row, style in made]
    for row, _, style in clips:
        samples = sound(220 * 1.6**style, seconds=seconds, rate=16_000, seed=int(row[0]))
        write(root / folder / row[-1], samples, 16_000, form=form)
    (root / folder / NORINE[-1]).touch()
    listed = [(row, tags) for row, tags, _ in clips] + [(NORINE, ["female"]), (PHANTASM, [])]
    mtat_tables(root, sorted(listed, key=lambda one: int(one[0][0])), quoted=quoted)
    return root


def mtat_tables(root, listed, *, quoted=True):
    """Write both tables: every row in clip_info_final.csv, those with a file in annotations_final.csv."""
    names = [row["tag"] for row in rows_of("mtat_tags.csv")]
    annotated = (
        [row[0], *("1" if name in tags else "0" for name in names), row[-1]]
        for row, tags in listed
        if row[-1]
    )
    root.mkdir(parents=True, exist_ok=True)
    for file, header, rows in [
        ("clip_info_final.csv", CLIP_INFO, (row for row, _ in listed)),
        ("annotations_final.csv", ["clip_id", *names, "mp3_path"], annotated),
    ]:
        mark = '"' if quoted else ""
        between = f"{mark}\t{mark}"
        (root / file).write_text(
            "".join(f"{mark}{between.join(row)}{mark}\n" for row in [header, *rows]),
            encoding="utf-8",
        )


USABLE = "1108 1543 1562 1238 2421 1604 1787 1163 1143 1772 1417 1948 1825 1677 1547 2105".split()
TAGGED = "914 1260 1250 1024 1953 1269 1490 933 906 1466 1148 1634 1529 1339 1270 1723".split()


def mtat_full_tables(root, *, quoted=False):
    """Tables of the published size, without audio: the published clips in each folder and how many of them have a top-50 tag, 5,519 rows without a file."""
    from patchifier.datasets.mtat import KNOWN_BAD

    kinds = [
        (folder, index < int(tagged))
        for folder, usable, tagged in zip(FOLDERS, USABLE, TAGGED, strict=True)
        for index in range(int(usable))
    ]
    kinds = [kinds[place] for place in np.random.default_rng(1).permutation(len(kinds))]
    listed = []
    for number, (folder, tagged) in enumerate(kinds):
        tags = ["guitar"] if tagged else ["electro"] if number % 3 else []
        listed.append((mtat_row(2 + number, folder, number), tags))
    bad = [
        ([str(40_000 + number), *NORINE[1:-1], path], ["female"])
        for number, path in enumerate(KNOWN_BAD)
    ]
    silent = [([str(50_000 + number), *PHANTASM[1:]], []) for number in range(5519)]
    mtat_tables(root, listed + bad + silent, quoted=quoted)
    return root


# --- GTZAN ---


def gtzan(
    root,
    *,
    layout="genres",
    suffix=".wav",
    seconds=1.0,
    tracks=None,
    junk=True,
    broken_jazz=False,
):
    """All 1,000 tracks (or those named) in one of the known layouts, with what macOS leaves behind; lengths differ a little from track to track."""
    for track in tracks or [f"{genre}.{number:05d}" for genre in GENRES for number in range(100)]:
        genre, number = track.split(".")
        folder = root / layout / genre
        folder.mkdir(parents=True, exist_ok=True)
        if junk:
            (folder / f"._{track}{suffix}").write_bytes(JUNK)
        place = GENRES.index(genre)
        length_s = seconds * [1.0, 660_000 / 661_794, 675_808 / 661_794][int(number) % 3]
        hz, seed = 110 * 1.45**place, 100 * place + int(number)
        hiss = 0.01 + 0.02 * (place % 3)
        samples = sound(hz, seconds=length_s, rate=22_050, seed=seed, hiss=hiss)
        write(folder / f"{track}{suffix}", samples, 22_050)
    if junk:
        (root / layout / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    if broken_jazz:
        (root / layout / "jazz" / f"jazz.00054{suffix}").write_bytes(b"not a RIFF header" * 64)
    return root


def gtzan_beats(root, *, seconds=1.0, tracks=12):
    """MARBLE's folder data/GTZAN: audio under genres, three tables of beats; clicks at the beats, louder ones at the downbeats. Gives that folder."""
    home = root / "data" / "GTZAN"
    home.mkdir(parents=True, exist_ok=True)
    for split, place in (("train", 0), ("val", 1), ("test", 2)):
        rows = []
        for number in range(place, tracks, 3):
            track, period_s = f"{GENRES[number % 10]}.{number:05d}", 0.4 + 0.02 * number
            beats = np.arange(0.05, seconds - 0.03, period_s).round(3).tolist()
            samples = sound(200, seconds=seconds, rate=22_050, seed=number, tone=0.01)
            click = sound(1500, seconds=400 / 22_050, rate=22_050, tone=1.0)
            for count, beat in enumerate(beats):
                start = round(beat * 22_050)
                samples[start : start + 400] += (0.8 if count % 4 == 0 else 0.4) * click
            name = f"genres/{track.split('.')[0]}/{track}.wav"
            write(home / name, samples, 22_050)
            label = {"beat": beats, "downbeat": beats[::4], "tempo": 60 / period_s, "meter": "4/4"}
            facts = {"duration": seconds, "sample_rate": 22_050, "num_samples": len(samples)}
            rows.append({"audio_path": f"data/GTZAN/{name}", "label": label, **facts})
            rows[-1] |= {"bit_depth": 16, "channels": 1}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (home / f"GTZANBeatTracking.{split}.jsonl").write_text(lines, encoding="utf-8")
    return home


# --- EmoMusic ---

SONGS = ["song_id", "file_name", "Artist", "Song title"]
SONGS += [f"{end} of the segment (min.sec)" for end in ("start", "end")]
SONGS += ["Genre", "Mediaeval 2013 set"]
POP = "Blues Classical Country Electronic Folk Jazz Pop Rock".split()
NAMED_SONGS = {  # id -> title, start, end
    2: ("Tonight  A Lonely Century", "0.48", "1.33"),
    3: ("DD Groove", "0.36", "1.21"),
    4: ("Slow Burn", "2", "2.45"),
    5: ("Nothing Much", "0.36", "1.21"),
    7: ("Hustle", "0.2", "1.05"),
    142: ("Aux puces nº2", "1.15", "2"),
    275: ("Χορός", "0.15", "1"),
    1000: ("Artist and title are one field", "0.5", "1.35"),
}
NAMED_RATINGS = {
    2: ("3.1", "0.99443", "3", "0.66667"),
    3: ("3.5", "1.8409", "3.3", "1.7029"),
    5: ("4.4", "2.1187", "5.3", "1.9465"),
    1000: ("7.2222", "1.0929", "5.8889", "2.0883"),
}


def min_sec(total_s):
    """A time as the table writes it: trailing zeros lost."""
    return f"{total_s // 60}.{total_s % 60:02d}".rstrip("0").rstrip(".")


def emomusic(
    root,
    *,
    songs=40,
    seconds=1.0,
    form="mp3",
    audible=True,
    tables="annotations",
):
    """Songs of the published list (744 in all), those named above among them; ratings by chance but for the published four, heard as pitch and loudness."""
    published = {int(row["song_id"]): row for row in rows_of("emomusic_jukemir.csv")}
    others = [number for number in published if number not in NAMED_SONGS]
    chosen = sorted([*NAMED_SONGS, *others][:songs])
    chance, drawn = np.random.default_rng(5), {}
    for number in published:
        values = chance.uniform([1.5, 0.5, 1.5, 0.5], [8.5, 2.5, 8.5, 2.5])
        drawn[number] = np.round(values, int(chance.integers(1, 5)))
    info, ratings = [], []
    for number in chosen:
        times = min_sec(number % 120), min_sec(number % 120 + 45)
        title, start, end = NAMED_SONGS.get(number, (f"Song {number}", *times))
        artist = published[number]["artist"]
        names = [f"{number}.mp3", f"\t{artist}\t" if number % 2 == 0 else artist, title]
        labels = [f"{POP[number % 8]}\t", published[number]["mediaeval2013_set"]]
        info.append([str(number), *names, start, end, *labels])
        rated = NAMED_RATINGS.get(number, [f"{value:g}" for value in drawn[number]])
        ratings.append([str(number), *rated])
        if audible:
            arousal, valence = float(rated[0]), float(rated[2])
            level = {"tone": 0.04 * arousal, "hiss": 0.004 * arousal}
            hz = 80 * 2 ** (valence / 2)
            samples = sound(hz, seconds=seconds, rate=44_100, seed=number, **level)
            write(root / "clips_45seconds" / f"{number}.mp3", samples, 44_100, form=form)
    if audible:  # one that nobody rated
        samples = sound(200, seconds=seconds, rate=44_100)
        write(root / "clips_45seconds" / "1.mp3", samples, 44_100, form=form)
    _table(root / tables / "songs_info.csv", [SONGS, *info])
    header = ["song_id", "mean_arousal", "std_arousal", "mean_valence", "std_valence"]
    _table(root / tables / "static_annotations.csv", [header, *ratings])
    header = ["song_id", *(f"sample_{time_ms}ms" for time_ms in range(15_000, 45_001, 500))]
    rows = [[str(number), *["0.1"] * 61] for number in chosen]
    for what in ("arousal", "valence"):
        for name in ("average", "std"):
            _table(root / tables / f"{what}_cont_{name}.csv", [header, *rows])
    return root


def _table(path, rows, *, between=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(between.join(row) + "\n" for row in rows), encoding="utf-8")


# --- GiantSteps key ---

SHARPS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
WITH_FLATS = ["C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B"]


def _side(artist):
    place = int(hashlib.sha1(artist.lower().encode()).hexdigest(), 16) % 116
    return "train" if place < 100 else "valid"


def artist_of(side, number):
    """The n-th name "Artist k" that the hash alone puts on this side."""
    names = (f"Artist {k}" for k in range(40 * number + 200))
    return [name for name in names if _side(name) == side][number]


def giantsteps(root, *, seconds=1.0, each=2, branch="-master", form="mp3"):
    """24 keys, `each` train, one valid and one test track of every key; tracks of low confidence, of two keys and of none; flats in test, sharps elsewhere."""
    mtg = root / f"giantsteps-mtg-key-dataset{branch}"
    original = root / f"giantsteps-key-dataset{branch}"
    keys = [(place, mode) for place in range(12) for mode in ("major", "minor")]
    metadata = [["ID", "ARTIST", "SONG TITLE", "MIX", "LABEL", "BP GENRE", "BP BPM", "BP KEY"]]
    annotations = [["ID", "MANUAL KEY", "C"]]

    def add(track, artists, key, confidence):
        title = [f"Title {track}", "Original Mix", "Label", "Techno", "128", "A min"]
        metadata.append([str(track), artists, *title])
        annotations.append([str(track), key, confidence])

    for number, (place, mode) in enumerate(keys):
        for copy in range(each + 1):
            track = 10_000 + 10 * number + copy
            artist = artist_of("train" if copy < each else "valid", (number + copy) % 6)
            add(track, artist, f"{SHARPS[place]} {mode}", "2")
            _chord(mtg / "audio" / f"{track}.LOFI.mp3", place, mode, seconds, track, form)
        track = 5_000 + number
        _chord(original / "audio" / f"{track}.LOFI.mp3", place, mode, seconds, track, form)
        key = original / "annotations" / "key" / f"{track}.LOFI.key"
        _table(key, [[f"{WITH_FLATS[place]} {mode}"]])
        _table(original / "md5" / f"{track}.LOFI.md5", [["0" * 32]])
    add(297011, artist_of("train", 0), "C minor", "1")
    add(61578, artist_of("train", 0), "C minor / F# minor", "2")
    add(10981, artist_of("train", 0), "-", "0")
    _table(mtg / "annotations" / "beatport_metadata.txt", metadata, between="\t")
    _table(mtg / "annotations" / "annotations.txt", annotations, between="\t")
    stray = [["a stray file that the repository has"]]
    _table(mtg / "annotations" / "genre" / "id.LOFI.genre", stray)
    return root


def _chord(path, place, mode, seconds, seed, form):
    tonic = 220 * 2 ** (place / 12)
    third, fifth = tonic * 2 ** ((4 if mode == "major" else 3) / 12), tonic * 2 ** (7 / 12)
    parts = [
        sound(hz, seconds=seconds, rate=44_100, seed=seed, tone=0.15, hiss=0.005)
        for hz in (tonic, third, fifth)
    ]
    write(path, np.sum(parts, axis=0), 44_100, form=form)


# --- NSynth ---

FAMILIES = ("bass brass flute guitar keyboard mallet organ reed string synth_lead vocal").split()


def nsynth(root, *, seconds=1.0, notes=22):
    """`notes` in each split, families in turn, synth_lead in train alone; the family is heard as hiss, the pitch as pitch."""
    for copy, split in enumerate(("train", "valid", "test")):
        facts, families = {}, [place for place in range(11) if split == "train" or place != 9]
        for number in range(notes):
            family = families[number % len(families)]
            pitch, velocity = 40 + 3 * number % 48, [25, 50, 75, 100, 127][number % 5]
            instrument = f"{FAMILIES[family]}_acoustic_{copy:03d}"
            note = f"{instrument}-{pitch:03d}-{velocity:03d}"
            if note in facts:
                continue
            facts[note] = {
                "note": number, "note_str": note, "instrument": family, "instrument_str": instrument, "pitch": pitch, "velocity": velocity, "sample_rate": 16000,
                "instrument_family": family, "instrument_family_str": FAMILIES[family], "instrument_source": 0, "instrument_source_str": "acoustic",
                "qualities": [0] * 10, "qualities_str": [],
            }  # fmt: skip
            hz, hiss = 440 * 2 ** ((pitch - 69) / 12), 0.01 * (1 + family)
            samples = sound(hz, seconds=seconds, rate=16_000, seed=number, hiss=hiss)
            write(root / f"nsynth-{split}" / "audio" / f"{note}.wav", samples, 16_000)
        text = json.dumps(facts, indent=1)
        (root / f"nsynth-{split}" / "examples.json").write_text(text, encoding="utf-8")
    return root


# --- MTG-Jamendo ---

JAMENDO_TAGS = {
    "top50tags": ["genre---rock", "genre---ambient", "instrument---piano", "mood/theme---happy"],
    "genre": ["genre---rock", "genre---ambient", "genre---dance"],
    "instrument": ["instrument---piano", "instrument---guitar", "instrument---voice"],
    "moodtheme": ["mood/theme---happy", "mood/theme---dark", "mood/theme---film"],
}


def jamendo(
    root,
    *,
    tracks=12,
    seconds=1.0,
    audio="",
    lists="data/splits/split-0",
    form="mp3",
):
    """The four subsets of split 0 over the same tracks, `tracks` in train and half as many in valid and test; one has its low-quality copy only."""
    numbers = {
        "train": range(948, 948 + tracks),
        "validation": range(2_000, 2_000 + tracks // 2),
        "test": range(1_048_681, 1_048_681 + tracks // 2),
    }
    for split, ids in numbers.items():
        for subset, tags in JAMENDO_TAGS.items():
            rows = [["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]]
            for number in ids:
                own = [tag for place, tag in enumerate(tags) if (number >> place) & 1] or [tags[0]]
                names = [f"track_{number:07d}"]
                names += [f"{what}_{number // 3:06d}" for what in ("artist", "album")]
                rows.append([*names, f"{number % 100:02d}/{number}.mp3", "166.0", *own])
            _table(root / lists / f"autotagging_{subset}-{split}.tsv", rows, between="\t")
        for number in ids:
            samples = sound(150 * 1.3 ** (number % 8), seconds=seconds, rate=44_100, seed=number)
            name = f"{number}{'.low' if number == 948 else ''}.mp3"
            write(root / audio / f"{number % 100:02d}" / name, samples, 44_100, form=form)
    return root

"""Copies of the bundled clips that code made: which are found as the same recording, and what is merged that is not.

    python benchmarks/duplicate_copies.py

Each of the 112 clips of 20 s (every one another track) is changed in several ways: encodings, speed, level, bandwidth, noise, cuts, silence. For each change a
table holds the 112 clips and their 112 copies, and 'patchifier duplicates' is run on it. The least cosine of a pair that is compared is chosen on folds 0 and 1
(56 tracks), the other 56 tracks are reported: copies that are confirmed (recall), pairs of different tracks that are called the same recording (false merges) or
another version, and beside them the copies that reach a cosine of 0.95, the rule before fingerprints. Intervals are Wilson's, of 95 %.
Writes results/duplicate_copies.json.
"""

import argparse
import dataclasses
import math
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import av
import numpy as np
import pyarrow as pa
import soundfile
import soxr

import patchifier
from patchifier import audio, datasets
from patchifier.evaluate.robustness import pink_noise
from patchifier.io import write_json
from patchifier.library import embed_library, search
from patchifier.library.search import duplicates
from patchifier.train.run import machine

RATE = 44_100
CUT_S = 2.0
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MP3_KBITS, OPUS_KBITS = (32, 64, 128, 320), (32, 96)


def noisy(sound, generator, snr_db):
    rms = np.sqrt((sound**2).mean())
    return sound + pink_noise(len(sound), RATE, generator) * rms * 10 ** (-snr_db / 20)


def narrow(sound):
    return soxr.resample(soxr.resample(sound, RATE, 16_000), 16_000, RATE)


def silent_ends(sound):
    silence = np.zeros(int(CUT_S * RATE), np.float32)
    return np.concatenate([silence, sound, silence])


CUT = int(CUT_S * RATE)
CHANGES = {
    "as it is": lambda sound, _: sound,
    "speed +1 %": lambda sound, _: soxr.resample(sound, 1.01 * RATE, RATE),
    "speed -1 %": lambda sound, _: soxr.resample(sound, 0.99 * RATE, RATE),
    "speed +3 %": lambda sound, _: soxr.resample(sound, 1.03 * RATE, RATE),
    "speed -3 %": lambda sound, _: soxr.resample(sound, 0.97 * RATE, RATE),
    "resampled to 16 kHz": lambda sound, _: narrow(sound),
    "20 dB quieter": lambda sound, _: 0.1 * sound,
    "pink noise at 20 dB": lambda sound, generator: noisy(sound, generator, 20),
    "pink noise at 10 dB": lambda sound, generator: noisy(sound, generator, 10),
    "2 s cut off at both ends": lambda sound, _: sound[CUT:-CUT],
    "2 s of silence at both ends": lambda sound, _: silent_ends(sound),
}
NAMES = [
    *(f"mp3 at {kbits} kbit/s" for kbits in MP3_KBITS),
    *(f"opus at {kbits} kbit/s" for kbits in OPUS_KBITS),
    *CHANGES,
]


def write(sound, name, place, generator):
    """Write a copy: mp3 and opus by PyAV, all else as 16-bit wav."""
    kind, _, rest = name.partition(" at ")
    if kind not in ("mp3", "opus"):
        changed = np.asarray(CHANGES[name](sound, generator), np.float32)
        path = place.with_suffix(".wav")
        soundfile.write(path, np.clip(changed, -1, 1), RATE)
        return path
    path = place.with_suffix(f".{kind}")
    rate = 48_000 if kind == "opus" else RATE
    coded = np.asarray(soxr.resample(sound, RATE, rate), np.float32)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libopus" if kind == "opus" else "libmp3lame", rate=rate)
        stream.layout, stream.bit_rate = "mono", 1000 * int(rest.split()[0])
        form = "flt" if kind == "opus" else "fltp"
        frame = av.AudioFrame.from_ndarray(coded[None], format=form, layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return path


def write_copies(clips, name, folder):
    """Write those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem for path in folder.iterdir()}
    for seed, clip in enumerate(clips):
        if track(clip.path) not in there:
            sound = audio.load(clip.path, sample_rate=RATE)
            write(sound, name, folder / track(clip.path), np.random.default_rng(seed))


def interval(found, total):
    """Wilson's interval of a share, 95 %."""
    z, share = 1.96, found / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def track(path):
    return Path(path).stem


def counts(found, tracks, least):
    """What is found among some tracks from a cosine on."""
    inside = [
        one
        for one in found
        if one.score >= least and {track(one.first.path), track(one.second.path)} <= tracks
    ]
    own = [one for one in inside if track(one.first.path) == track(one.second.path)]
    other = [one for one in inside if track(one.first.path) != track(one.second.path)]
    kinds = {kind: sum(one.kind == kind for one in own) for kind in (duplicates.SAME, duplicates.EDITED, duplicates.VERSION)}  # fmt: skip
    false = sum(one.kind in (duplicates.SAME, duplicates.EDITED) for one in other)
    return kinds, false, sum(one.kind == duplicates.VERSION for one in other)


def cosines(table):
    """Cosine of each copy with its original."""
    vectors = table.vectors.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    of = {}
    for path, vector in zip(table.paths, vectors, strict=True):
        of.setdefault(track(path), []).append(vector)
    return {name: float(one @ other) for name, (one, other) in of.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="patchifier-base")
    parser.add_argument("--changes", nargs="+", default=NAMES)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the copies, to use again")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "duplicate_copies.json"
    )
    flags = parser.parse_args()
    clips, model = datasets.load("demo").clips, patchifier.load(flags.model)
    chosen_on = {track(clip.path) for clip in clips if clip.fold in (0, 1)}
    reported = {track(clip.path) for clip in clips if clip.fold in (2, 3)}
    found, reach, compared = {}, {}, {}
    with tempfile.TemporaryDirectory() as home:
        place = flags.keep or Path(home)
        for name in flags.changes:
            write_copies(clips, name, place / name.replace("/", " "))
        sources = [str(place), *(str(clip.path) for clip in clips)]
        embed_library(
            sources, place / "x.parquet", embedder=model, workers=flags.workers, changed=True
        )
        everything = search.read(place / "x.parquet")
        originals = {str(Path(clip.path).resolve()) for clip in clips}
        for name in flags.changes:
            started, folder = time.perf_counter(), f"{place.resolve() / name.replace('/', ' ')}/"
            kept = [path in originals or path.startswith(folder) for path in everything.paths]
            some = dataclasses.replace(everything, rows=everything.rows.filter(pa.array(kept)))
            # of the name of the whole table, beside which fingerprints are kept
            store = search.Table(some, name=str(place / "x.parquet"))
            found[name] = duplicates.duplicates(store, THRESHOLDS[0], workers=flags.workers)
            reach[name] = cosines(some)
            pairs = store.candidate_pairs(duplicates.CANDIDATE, duplicates.NEIGHBOURS)
            compared[name] = sum(
                track(pair.first.path) != track(pair.second.path)
                and {track(pair.first.path), track(pair.second.path)} <= reported
                for pair in pairs
            )
            seconds = time.perf_counter() - started
            print(f"{name}: {len(found[name])} pairs, {seconds:.0f} s", flush=True)
    report(flags, found, reach, compared, chosen_on, reported)


def report(flags, found, reach, compared, chosen_on, reported):
    choice = {}
    for least in THRESHOLDS:
        kinds, false = 0, 0
        for name in found:
            own, wrong, _ = counts(found[name], chosen_on, least)
            kinds, false = kinds + own[duplicates.SAME] + own[duplicates.EDITED], false + wrong
        choice[least] = (kinds, false)
        print(
            f"folds 0 and 1, from {least}: {kinds} of {len(found) * len(chosen_on)} confirmed, {false} false"
        )
    best = max(kinds for kinds, _ in choice.values())
    least = max(least for least, (kinds, _) in choice.items() if kinds >= 0.995 * best)
    rows, n = [], len(reported)
    print(f"chosen: {least}; the shipped one is {duplicates.CANDIDATE}. Folds 2 and 3:")
    for name in found:
        kinds, false, versions = counts(found[name], reported, duplicates.CANDIDATE)
        confirmed = kinds[duplicates.SAME] + kinds[duplicates.EDITED]
        before = sum(reach[name][one] >= 0.95 for one in reported)
        rows.append(
            {
                "change": name, "tracks": n, "same recording": kinds[duplicates.SAME], "edited or re-encoded": kinds[duplicates.EDITED],
                "another version": kinds[duplicates.VERSION], "recall": round(confirmed / n, 4), "recall_interval": interval(confirmed, n),
                "false merges": false, "false versions": versions, "pairs of different tracks that were compared": compared[name], "cosine of at least 0.95": before,
            }
        )  # fmt: skip
        print(
            f"{name:30} same {kinds[duplicates.SAME]:3} edited {kinds[duplicates.EDITED]:3} version {kinds[duplicates.VERSION]:3} of {n}; false {false} and {versions} of {compared[name]}; by 0.95 alone {before}"
        )
    write_json(
        flags.out,
        {
            "machine": machine(), "model": flags.model, "threshold": duplicates.CANDIDATE, "chosen": least,
            "choice": [{"threshold": one, "confirmed": kinds, "false merges": false} for one, (kinds, false) in choice.items()],
            "changes": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()

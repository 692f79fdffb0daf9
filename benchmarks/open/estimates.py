"""How often `patchifier.estimates` is right about tempo, key and chords, on rendered music whose answers are known.

    python benchmarks/open/estimates.py ROOT [--side valid] [--speech FOLDER]

ROOT is that of build.py. Tempo: accompaniments of mma; right within 4 % (Acc1), or of half, twice, a third or three times the tempo (Acc2). Key:
scores whose key is certain; mir_eval's weighted score, and the share of exact answers. Chords: accompaniments; overlap with the right root, and with
the right major or minor triad. An answer that is None counts as wrong; `answered` is the share of others. Beside them librosa's tempo, and the key by
librosa's chroma with the same profiles. No weight was trained; the limits of doubt, the square of the chroma, the weight of sevenths and how long chords
last were chosen on the training side. Intervals of 95 % by bootstrap over pieces. Noise, speech-like sound (other_sounds.py) and a folder
of recorded speech: answers are false alarms.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import librosa
import mir_eval
import numpy as np
import other_sounds
from groups import read_manifest

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import keep

from patchifier import audio, estimates, jobs
from patchifier.cli.progress import progress
from patchifier.config import SpectrogramConfig
from patchifier.spectrogram import stream_log_mel
from patchifier.statistics import estimate

CONFIG = SpectrogramConfig(n_pitch_bands=216)
WITHIN, FACTORS = 0.04, (1, 2, 3, 1 / 2, 1 / 3)
TASKS = {"tempo": "grooves-tempo", "key": "scores-key", "chords": "grooves-chords"}
MOST = 400  # clips of a task
SOUNDS = 60  # of each kind
RATE = audio.SAMPLE_RATE


def features(samples):
    return estimates.features(stream_log_mel([samples.astype(np.float32)], CONFIG), CONFIG)


def tempo_scores(truth, bpm):
    right = [bpm is not None and abs(bpm / (factor * truth) - 1) <= WITHIN for factor in FACTORS]
    return {"acc1": float(right[0]), "acc2": float(any(right)), "answered": float(bpm is not None)}


def key_scores(truth, name):
    if name is None:
        return {"weighted": 0.0, "exact": 0.0, "answered": 0.0}
    score = mir_eval.key.weighted_score(truth, name)
    return {"weighted": score, "exact": float(score == 1.0), "answered": 1.0}


def chord_scores(truth, chords, seconds):
    """Weighted share of time with the right triad, of the time that has one (or none)."""
    wanted = np.array([[row[0], row[1]] for row in truth]), [row[2] for row in truth]
    found = (
        np.array([[one.start_s, one.end_s] for one in chords]),
        [_harte(one.name) for one in chords],
    )
    found = mir_eval.util.adjust_intervals(*found, 0.0, seconds, "N", "N")
    wanted = mir_eval.util.adjust_intervals(*wanted, 0.0, seconds, "N", "N")
    scores = mir_eval.chord.evaluate(*wanted, *found)
    return {"root": float(scores["root"]), "majmin": float(scores["majmin"])}


def _harte(name):
    if name is None:
        return "N"
    root, mode = name.split()
    return f"{root}:{'maj' if mode == 'major' else 'min'}"


def librosa_key(samples):
    chroma = librosa.feature.chroma_cqt(y=samples, sr=RATE).T  # from C
    return estimates.key(estimates.Features(np.zeros(0), np.roll(chroma, 3, axis=1), 0.0232)).name


def judge(shared, rows):
    return [jobs.attempt(row["path"], judge_one, shared, row) for row in rows]


def judge_one(shared, row):
    task, root = shared
    samples = audio.load(root / row["path"])
    found = features(samples)
    if task == "tempo":
        other = float(np.atleast_1d(librosa.feature.tempo(y=samples, sr=RATE))[0])
        return tempo_scores(row["bpm"], estimates.tempo(found).bpm), tempo_scores(row["bpm"], other)
    if task == "key":
        return key_scores(row["target"], estimates.key(found).name), key_scores(
            row["target"], librosa_key(samples)
        )
    seconds = len(samples) / RATE
    truth = [one for one in row["target"] if one[0] < seconds]
    return (chord_scores(truth, estimates.chords(found), seconds),)


def false_alarms(speech):
    """Share of sounds of each kind without tempo and key that get one, and the share of their time with a chord."""
    facts = {}
    for kind, make in other_sounds.KINDS.items():
        sounds = (make(np.random.default_rng(seed), RATE) for seed in range(SOUNDS))
        facts[kind] = alarms(sounds)
    if speech:
        facts["recorded speech"] = alarms(map(audio.load, other_sounds.recorded(speech)))
    return facts


def alarms(sounds):
    found = [features(sound) for sound in sounds]
    named = [one for each in found for one in estimates.chords(each) if one.name]
    return {
        "n": len(found),
        "tempo": float(np.mean([estimates.tempo(each).bpm is not None for each in found])),
        "key": float(np.mean([estimates.key(each).name is not None for each in found])),
        "chords": sum(one.end_s - one.start_s for one in named)
        / sum(len(each.onsets) * each.frame_s for each in found),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--side", default="valid", choices=("train", "valid"))
    parser.add_argument("--speech", type=Path)
    flags = parser.parse_args()
    facts = {"side": flags.side, "false_alarms": false_alarms(flags.speech)}
    for kind, found in facts["false_alarms"].items():
        print(f"{kind:<12}{found}", flush=True)
    for task, name in TASKS.items():
        file = flags.root / "tasks" / f"{name}.jsonl"
        rows = [row for row in read_manifest(file) if row["split"] == flags.side][:MOST]
        facts[task] = report(task, rows, flags.root)
    keep("estimates" if flags.side == "valid" else f"estimates_{flags.side}", facts)


def report(task, rows, root):
    shown, found = progress(task), []
    for result in jobs.run(
        judge,
        [[row] for row in rows],
        workers=os.cpu_count() or 1,
        shared=(task, root),
        name=lambda row: row["path"],
    ):
        assert not isinstance(result, str), result
        found.append(result)
        shown(len(found), len(rows), "")
    groups = [row["group"] for row in rows]
    facts = {}
    for place, way in enumerate(("patchifier", "librosa")[: len(found[0])]):
        facts[way] = {}
        for metric in found[0][place]:
            values = np.array([each[place][metric] for each in found])
            score = estimate(
                metric, groups, lambda indices, values=values: float(values[indices].mean())
            )
            facts[way][metric] = {
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "n": score.n,
            }
            print(
                f"{task:<8}{way:<12}{metric:<10}{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]  n = {score.n}",
                flush=True,
            )
    return facts


if __name__ == "__main__":
    main()

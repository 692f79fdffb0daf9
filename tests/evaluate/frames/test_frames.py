"""Frame-wise vectors, targets, figures and decoding, and the probe on music made here."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from patchifier import cache, datasets, spectrogram
from patchifier.cache import Cache
from patchifier.config import Config, RequestError
from patchifier.datasets.labels import CHORDS
from patchifier.datasets.splits import Splits
from patchifier.evaluate import frames
from patchifier.evaluate.evaluator import Evaluator
from patchifier.evaluate.frames import (
    decode,
    encode,
    fit,
    frame_vectors,
    mel_frames,
    probe_frames,
    scores,
)
from patchifier.evaluate.frames.decode import (
    SETTINGS,
    bar_positions,
    peaks,
    period,
    smooth_path,
    steady_beats,
)
from patchifier.evaluate.frames.targets import majmin
from patchifier.evaluate.frames.vectors import frame_times_s
from patchifier.io import Steps, silent
from patchifier.nn.model import Patchifier
from patchifier.tasks import Task
from patchifier.train import loop
from tests import builders, small

RATE = 22_050
HOP_S = 1024 / RATE
BEATS = Task("per-frame", ("beat",), "beats")
DOWNBEATS = Task("per-frame", ("beat", "downbeat"), "beats")
CHORD = Task("per-frame", CHORDS, "chords")
BOUNDARIES = Task("per-frame", ("boundary",), "boundaries")


def embedder(pretrain=None, **embed):
    config = small.config(embed=embed, pretrain=pretrain or {})
    network = Patchifier(config, seed=0)
    with torch.no_grad():
        network.bottleneck.positions.mul_(10)  # so that a wrong position shows
    return builders.embedder(network, config)


def log_mel(count, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 0.2, (64, count))
    return torch.from_numpy(values.astype(np.float32))


def padded(sound, after):
    """With half a patch of silence in front, and more behind: silence is not zero."""
    return torch.nn.functional.pad(sound, (16, after), value=-1.0)


def encoded(model, patches):
    with torch.no_grad():
        return [layer[0].numpy() for layer in model.network.model.forward_encoder(patches[None])]


def events(*times, place=""):
    return [[time, time, place] for time in times]


# --- vectors ---


def test_vector_of_the_extractor_is_that_of_the_patch_around_the_moment():
    model, sound = embedder(), log_mel(100)
    vectors, times = frame_vectors(model, sound, layers=(0,))
    assert vectors.shape == (50, 16)
    assert vectors.dtype == np.float32
    around = padded(sound, 32)
    for moment in (0, 7, 30, 49):
        patch = around[:, 2 * moment : 2 * moment + 32]  # from 16 frames before the moment
        with torch.no_grad():
            expected = model.network.model.extractor(patch[None, None])[0]
        np.testing.assert_allclose(vectors[moment], expected, atol=1e-5)
        assert times[moment] == 2 * moment * 512 / RATE


@pytest.mark.parametrize("layers", [(1,), (-1,), (0, 2)])
def test_vector_of_the_bottleneck_is_that_of_the_sequence_of_touching_patches(layers):
    model, sound = embedder(), log_mel(160)
    vectors, _ = frame_vectors(model, sound, layers=layers)
    around = padded(sound, 64)
    for offset in (0, 3, 15):  # in moments; 16 of them are a patch
        starts = range(2 * offset, 160, 32)
        patches = torch.stack([around[:, start : start + 32] for start in starts])[:, None]
        found = encoded(model, patches)
        expected = np.concatenate([found[layer][-len(patches) :] for layer in layers], axis=1)
        np.testing.assert_allclose(vectors[offset::16], expected, atol=1e-5)


def test_longer_sequences_go_through_windows_of_trained_length():
    model, sound = embedder({"n_patches": 4}, hop_patches=2), log_mel(32 * 6)
    vectors, _ = frame_vectors(model, sound, hop_frames=32)
    around = padded(sound, 64)
    patches = torch.stack([around[:, 32 * n : 32 * n + 32] for n in range(6)])[:, None]
    first, second = (encoded(model, patches[start : start + 4])[-1][1:] for start in (0, 2))
    expected = np.concatenate([first[:2], (first[2:] + second[:2]) / 2, second[2:]])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    whole, _ = frame_vectors(embedder({"n_patches": 4}, whole_clip=True), sound, hop_frames=32)
    np.testing.assert_allclose(whole, encoded(model, patches)[-1][1:], atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 31, 33, 700, 1293])
def test_vectors_do_not_depend_on_chunks(count):
    model, sound = embedder(), log_mel(count)
    vectors, times = frame_vectors(model, sound, layers=(0, -1), patches_at_once=10_000)
    pieces, again = frame_vectors(model, sound, layers=(0, -1), patches_at_once=7)
    assert vectors.shape == (1 + (count - 1) // 2, 32)
    assert len(times) == len(vectors)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(pieces, vectors, atol=1e-5)
    np.testing.assert_array_equal(again, times)


def test_extractors_vectors_of_a_part_are_those_of_the_whole():
    model, sound = embedder(), log_mel(400)
    whole, _ = frame_vectors(model, sound, layers=(0,))
    part, _ = frame_vectors(model, sound[:, 100:300], layers=(0,))
    # 16 frames at each edge see silence instead
    np.testing.assert_allclose(part[8:-8], whole[58:142], atol=1e-5)


def test_times_do_not_drift_over_ten_minutes():
    count = 1 + 600 * RATE // 512
    for hop_frames in (1, 2, 3):
        times = frame_times_s(1 + (count - 1) // hop_frames, hop_frames, Config().spectrogram)
        last = (count - 1) // hop_frames * hop_frames
        assert times[-1] == last * 512 / RATE
        assert 600 - times[-1] < hop_frames * 512 / RATE


def test_moment_is_where_the_sound_is(tone):
    samples = np.zeros(5 * RATE, np.float32)
    for second in (1, 2, 4):
        samples[second * RATE : second * RATE + 200] = 0.5
    features, times = mel_frames(spectrogram.log_mel(samples), context_frames=0)
    assert features.shape == (len(times), 64)
    loudest = times[peaks(features.mean(1), threshold=-0.5, gap=10)]
    np.testing.assert_allclose(loudest, [1, 2, 4], atol=HOP_S)


def test_log_mel_context_holds_the_frames_around():
    sound = log_mel(9)
    features, times = mel_frames(sound, hop_frames=4, context_frames=2)
    np.testing.assert_allclose(times, [0, 4 * 512 / RATE, 8 * 512 / RATE])
    np.testing.assert_array_equal(features[1], sound[:, 2:7].flatten())
    np.testing.assert_array_equal(features[0].reshape(64, 5)[:, :2], -1)
    np.testing.assert_array_equal(features[2].reshape(64, 5)[:, 3:], -1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (3,)}, r"no layer 3, expected 0 to 2"),
        ({"layers": ()}, r"no layer given"),
        ({"hop_frames": 3}, r"hop_frames is 3, expected a divisor of the patch length \(32\)"),
        ({"hop_frames": 0, "layers": (0,)}, "hop of 1 or more"),
    ],
)
def test_layers_and_hops_that_make_no_sense_are_refused(options, said):
    with pytest.raises(RequestError, match=said):
        frame_vectors(embedder(), log_mel(50), **options)


def test_any_hop_will_do_for_the_extractor_and_no_frame_for_nothing():
    assert frame_vectors(embedder(), log_mel(50), hop_frames=3, layers=(0,))[0].shape == (17, 16)
    with pytest.raises(RequestError, match="expected \\(M, T\\)"):
        mel_frames(torch.zeros(64, 0))


# --- targets ---


def test_beats_are_widened_by_a_frame_of_less_weight():
    times = np.arange(8) * 0.05
    rows = [[0.0, 0.0, "1"], [0.16, 0.16, "2"], [0.21, 0.21, ""]]
    rows.append([9.0, 9.0, "1"])  # beyond the clip
    targets, known = encode(DOWNBEATS, rows, times)
    np.testing.assert_array_equal(targets[:, 0], [1, 0.5, 0.5, 1, 1, 0.5, 0, 0])
    np.testing.assert_array_equal(targets[:, 1], [1, 0.5, 0, 0, 0, 0, 0, 0])
    assert known.all()
    assert encode(BEATS, [], times)[0].sum() == 0


def test_chords_stand_at_their_frames_and_what_is_no_triad_is_not_learned():
    times = np.arange(6) * 0.5
    rows = [[0.0, 1.0, "C:min7"], [1.0, 1.5, "D:sus4"], [1.5, 2.0, "N"], [2.0, 2.3, "Bb"]]
    targets, known = encode(CHORD, rows, times)
    learned = [CHORDS[number] for number in targets[known].argmax(1)]
    assert learned == ["C:min", "C:min", "N", "A#:maj"]
    np.testing.assert_array_equal(known, [True, True, False, True, True, False])


LABELS = "N C Db:min B:maj7 G:min/b3 F:7 A:maj/2 E:sus4 D:dim C:aug C:1 C:5 X C:min6 C:(3,5)"


@pytest.mark.parametrize("label", LABELS.split())
def test_triad_of_a_label_is_mir_evals(label):
    from mir_eval import chord

    number = majmin(label)
    right = [chord.majmin([label], [name])[0] for name in CHORDS]
    classes = [float(index == number) for index in range(25)]
    assert right == ([-1.0] * 25 if number is None else classes)
    assert majmin("C:aug7") is None  # which mir_eval cannot encode


def test_boundaries_are_widened_by_half_a_second_and_edges_of_the_clip_are_none():
    times = np.arange(9) * 0.25
    targets, _ = encode(BOUNDARIES, [[0.0, 1.0, "a"], [1.0, 2.0, "b"]], times)
    np.testing.assert_allclose(targets[:, 0], [0, 0, 0.5, 0.75, 1, 0.75, 0.5, 0, 0])
    assert encode(BOUNDARIES, [[0.0, 2.0, "a"]], times)[0].sum() == 0


# --- figures ---


@pytest.mark.parametrize(("shift_s", "value"), [(0.0, 1.0), (0.06, 1.0), (-0.06, 1.0), (0.1, 0.0)])
def test_beats_within_70_ms_are_right(shift_s, value):
    reference = events(*np.arange(0.25, 20, 0.5))  # none near 5 s, where the figure begins
    shifted = events(*(time + shift_s for time, _, _ in reference))
    found = scores(BEATS, [reference], [shifted])
    assert list(found) == ["beat_f", "beat_f_all"]
    assert found["beat_f"] == found["beat_f_all"] == pytest.approx(value)


def test_every_other_beat_has_precision_one_and_recall_half():
    found = scores(BEATS, [events(*np.arange(5, 15, 0.5))], [events(*np.arange(5, 15, 1.0))])
    assert found["beat_f"] == pytest.approx(2 / 3)  # 2 * 1 * 0.5 / 1.5


def test_first_five_seconds_are_passed_over_in_one_figure_and_not_in_the_other():
    found = scores(BEATS, [events(1, 2, 4.9, 5, 6, 7)], [events(5, 6, 7)])
    assert found["beat_f"] == 1
    assert found["beat_f_all"] == pytest.approx(2 / 3)


def test_downbeats_are_judged_apart():
    reference = [[5 + n / 2, 5 + n / 2, str(1 + n % 4)] for n in range(16)]
    late = [[time, end, str(1 + int(place) % 4)] for time, end, place in reference]
    found = scores(DOWNBEATS, [reference], [late])
    assert list(found) == ["beat_f", "downbeat_f", "beat_f_all", "downbeat_f_all"]
    assert (found["beat_f"], found["downbeat_f"]) == (1, 0)


def test_clip_in_which_nothing_is_asked_does_not_count_and_one_without_an_answer_has_nothing():
    right = events(6, 7)
    assert scores(BEATS, [right, events(1, 2)], [right, []])["beat_f"] == 1
    assert scores(BEATS, [right, right], [right, []])["beat_f"] == 0.5
    assert math.isnan(scores(BEATS, [[]], [right])["beat_f"])
    with pytest.raises(RequestError, match="2 clips have labels and 1 have estimates"):
        scores(BEATS, [right, right], [right])


@pytest.mark.parametrize(
    ("reference", "estimate", "value"),
    [
        ([[0, 4, "C"]], [[0, 4, "C:maj"]], 1.0),
        ([[0, 4, "C"]], [[0, 2, "C:maj"], [2, 4, "C:min"]], 0.5),
        ([[0, 4, "C:min7"]], [[0, 4, "C:min"]], 1.0),
        ([[0, 2, "C"], [2, 4, "D:sus4"]], [[0, 4, "C:maj"]], 1.0),  # sus4 is not asked
        ([[0, 2, "C"], [2, 4, "C:aug7"]], [[0, 4, "C:maj"]], 1.0),  # nor what mir_eval cannot read
        ([[0, 1, "N"], [1, 4, "A:min"]], [[0, 4, "A:min"]], 0.75),
        ([[0, 1, "C"], [3, 4, "G"]], [[0, 2, "C:maj"], [2, 4, "G:maj"]], 1.0),  # nor is a gap
        ([[0, 4, "Db"]], [[1, 3, "C#:maj"]], 0.5),
        ([[0, 4, "C"]], [], 0.0),
        ([[0, 4, "N"]], [], 1.0),  # saying nothing is saying N
    ],
)
def test_chords_are_weighed_by_their_time(reference, estimate, value):
    assert scores(CHORD, [reference], [estimate]) == {"wcsr": pytest.approx(value)}


def test_chords_of_a_test_set_are_weighed_by_all_their_time():
    reference = [[[0, 9, "C"]], [[0, 1, "C"]], [[0, 5, "X"]]]
    found = scores(CHORD, reference, [[[0, 9, "C"]], [[0, 1, "G"]], [[0, 5, "G"]]])
    assert found["wcsr"] == pytest.approx(0.9)


def test_chords_agree_with_mir_evals_own_evaluation():
    from mir_eval import chord

    generator = np.random.default_rng(0)
    names = "C C:min7 G:sus4 N A:min/b3 F#:maj7 X E:7/3".split()

    def drawn(count):
        edges = [0, *np.sort(generator.uniform(0, 30, count)), 30]
        return [[a, b, str(generator.choice(names))] for a, b in itertools.pairwise(edges)]

    for _ in range(20):
        both = drawn(6), drawn(9)
        given = [(np.array([row[:2] for row in rows]), [row[2] for row in rows]) for rows in both]
        expected = chord.evaluate(*given[0], *given[1])["majmin"]
        found = scores(CHORD, [both[0]], [both[1]])["wcsr"]
        assert found == pytest.approx(expected) or (math.isnan(found) and expected == 0)


def test_boundaries_within_half_a_second_and_three():
    reference = [[0, 10, "a"], [10, 20, "b"], [20, 30, "a"]]
    found = scores(BOUNDARIES, [reference], [[[0, 10.4, ""], [10.4, 22, ""], [22, 30, ""]]])
    # of 0, 10, 20, 30 three are found; of 10, 20 one
    assert found == pytest.approx(
        {
            "boundary_f_0.5": 0.75,
            "boundary_f_3": 1,
            "boundary_f_0.5_inside": 0.5,
            "boundary_f_3_inside": 1,
        }
    )
    nothing = scores(BOUNDARIES, [reference], [[[0, 30, ""]]])
    # start and end: precision 1, recall 1/2
    assert list(nothing.values()) == pytest.approx([2 / 3, 2 / 3, 0, 0])
    whole = scores(BOUNDARIES, [[[0, 30, "a"]]], [[[0, 30, ""]]])
    assert math.isnan(whole["boundary_f_0.5_inside"])


@pytest.mark.parametrize("task", [DOWNBEATS, CHORD, BOUNDARIES])
def test_right_frames_become_right_rows(task):
    """Targets as probabilities, decoded and judged against the rows they were made from."""
    times = frame_times_s(650, 2, Config().spectrogram)
    duration_s = 650 * HOP_S
    rows = {
        "beats": [[0.31 + 0.52 * n, 0.31 + 0.52 * n, str(1 + (n + 2) % 3)] for n in range(56)],
        "chords": [
            [3.0 * n, min(3.0 * n + 3, duration_s), CHORDS[(7 * n) % 25]] for n in range(10)
        ],
        "boundaries": [
            [start, end, "x"]
            for start, end in ((0, 7.3), (7.3, 14.9), (14.9, 25.1), (25.1, duration_s))
        ],
    }[task.metric]
    targets, _ = encode(task, rows, times)
    for setting in SETTINGS[task.metric]:
        found = scores(task, [rows], [decode(task, 0.9 * targets, times, duration_s, setting)])
        assert min(found.values()) > 0.97, setting


# --- decoding ---


def test_peaks_are_the_highest_of_their_neighbourhood():
    curve = np.array([0.9, 0.1, 0.5, 0.4, 0.45, 0.2, 0.2, 0.1, 0.6])
    assert peaks(curve, threshold=0.15, gap=3) == [0, 4, 8]
    assert peaks(curve, threshold=0.7, gap=3) == [0]
    assert peaks(np.zeros(5), threshold=0.1, gap=1) == []
    assert peaks(np.array([0.3, 0.3, 0.3]), threshold=0.1, gap=1) == [0]


@pytest.mark.parametrize("bpm", [75, 97, 120, 133, 160])
def test_steady_beats_fill_in_what_is_missing_and_pass_over_what_is_between(bpm):
    times = np.arange(600) * HOP_S
    beats = np.arange(0.4, 27, 60 / bpm)
    generator = np.random.default_rng(bpm)
    heard = np.concatenate([np.delete(beats, [6, 15, 16]), generator.uniform(0, 27, 4)])
    apart_s = np.abs(times[:, None] - heard).min(1)
    curve = np.exp(-0.5 * (apart_s / 0.03) ** 2) + 0.05 * generator.random(600)
    assert period(curve, hop_s=HOP_S) * HOP_S == pytest.approx(60 / bpm, rel=0.03)
    rows = decode(BEATS, curve[:, None], times, 28.0)
    assert scores(BEATS, [events(*beats)], [rows])["beat_f"] > 0.95


def test_silence_and_a_single_frame_have_no_beat():
    assert steady_beats(np.zeros(100), hop_s=HOP_S, tightness=100) == []
    for task in (DOWNBEATS, CHORD, BOUNDARIES):
        for setting in SETTINGS[task.metric]:
            rows = decode(task, np.full((1, len(task.names)), 0.04), np.zeros(1), 0.01, setting)
            assert len(rows) == (task.metric != "beats")


@pytest.mark.parametrize(("length", "first"), [(2, 1), (3, 0), (3, 2), (4, 3)])
def test_bars_are_counted_from_the_likeliest_first_beat(length, first):
    beats = list(range(5, 150, 9))
    curve = np.full(160, 0.1)
    curve[[beat for number, beat in enumerate(beats) if number % length == first]] = 0.8
    curve[beats[first + length]] = 0.1  # one is not heard
    ones = [number for number, place in enumerate(bar_positions(curve, beats)) if place == 1]
    assert ones == list(range(first, len(beats), length))
    assert bar_positions(curve, []) == []


def test_path_changes_only_if_it_pays():
    likely = np.log(np.array([[0.9, 0.1]] * 5 + [[0.4, 0.6]] + [[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5))
    assert smooth_path(likely, 0.0).tolist() == [0] * 5 + [1] + [0] * 5 + [1] * 5
    assert smooth_path(likely, 2.0).tolist() == [0] * 11 + [1] * 5
    assert smooth_path(likely, 100.0).tolist() == [0] * 16


# --- the probe ---


def click_track(bpm, first_s, seconds, seed):
    """Bursts of noise on the beat, a drum with every fourth, over faint noise."""
    generator = np.random.default_rng(seed)
    sound = 0.003 * generator.standard_normal(round(seconds * RATE))
    beats = np.arange(first_s, seconds - 0.1, 60 / bpm)
    frames = np.arange(round(0.03 * RATE))
    drum = 0.5 * np.sin(2 * np.pi * 120 * frames / RATE)
    for number, beat in enumerate(beats):
        burst = np.exp(-frames / (0.006 * RATE)) * generator.standard_normal(len(frames)) * 0.4
        burst += drum * (number % 4 == 0)
        sound[round(beat * RATE) :][: len(frames)] += burst
    return np.clip(sound, -1, 1).astype(np.float32), beats.tolist()


TRIADS = {"C:maj": (0, 4, 7), "F:maj": (5, 9, 12), "A:min": (9, 12, 16), "E:min": (4, 7, 11)}


def triads(seed):
    """Six triads of a second and a bit, drawn from four."""
    generator = np.random.default_rng(seed)
    parts, rows, start = [], [], 0.0
    for _ in range(6):
        name = list(TRIADS)[generator.integers(4)]
        time_s = np.arange(round(generator.uniform(0.8, 1.6) * RATE)) / RATE
        pitches_hz = [261.63 * 2 ** (step / 12) for step in TRIADS[name]]
        tones = sum(0.15 * np.sin(2 * np.pi * hz * time_s) for hz in pitches_hz)
        parts.append(tones + 0.01 * generator.standard_normal(len(time_s)))
        rows.append((start, start + len(time_s) / RATE, name))
        start = rows[-1][1]
    return np.concatenate(parts).astype(np.float32), rows


def side(number):
    return "train" if number < 8 else "val" if number < 11 else "test"


def clip_sides(data):
    return Splits.of(data.clips, [clip.split for clip in data.clips])


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A cache of click tracks from a manifest in MARBLE's schema."""
    root, rows = tmp_path_factory.mktemp("clicks"), []
    generator = np.random.default_rng(0)
    (root / "data/GTZAN").mkdir(parents=True)
    for number in range(16):
        sound, beats = click_track(generator.uniform(80, 160), generator.uniform(0, 0.6), 9, number)
        soundfile.write(root / f"data/GTZAN/{number}.wav", sound, RATE)
        label = {"beat": beats, "downbeat": beats[::4], "tempo": 120.0, "meter": "4/4"}
        row = {"audio_path": f"data/GTZAN/{number}.wav", "label": label, "split": side(number)}
        rows.append(row | {"duration": 9.0, "sample_rate": RATE, "channels": 1})
    manifest = root / "data/GTZAN/GTZANBeatTracking.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cache.prepare(datasets.load(manifest), root / "cache", workers=1)
    return Cache(root / "cache")


@pytest.fixture(scope="module")
def harmony(tmp_path_factory):
    """A cache of triads, with .lab files and a CSV."""
    root, lines = tmp_path_factory.mktemp("harmony"), ["path,label,split"]
    for number in range(15):
        sound, rows = triads(number)
        soundfile.write(root / f"{number}.wav", sound, RATE)
        text = "".join(f"{start:.6f}\t{end:.6f}\t{name}\n" for start, end, name in rows)
        (root / f"{number}.lab").write_text(text, encoding="utf-8")
        lines.append(f"{number}.wav,{number}.lab,{side(number)}")
    (root / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cache.prepare(datasets.load(root / "t.csv"), root / "cache", workers=1)
    return Cache(root / "cache")


def probe(data, *, context=0, features=None, splits=None, **how):
    features = features or frames.mel_features(data, context_frames=context)
    return probe_frames(data.task, data, features, splits or clip_sides(data), **how)


@pytest.fixture(scope="module")
def clicks_heard(clicks):
    return probe(clicks, context=3)


@pytest.fixture
def steps(monkeypatch):
    """Let the probe train for so many steps."""
    return lambda count: monkeypatch.setattr(fit, "STEPS", count)


def test_labels_go_through_a_cache_and_back(clicks, harmony):
    for data, table, task in (
        (clicks, "data/GTZAN/GTZANBeatTracking.jsonl", DOWNBEATS),
        (harmony, "t.csv", CHORD),
    ):
        written = datasets.load(data.path.parent / table)
        assert data.task == written.task == task
        assert data.clips == written.clips
        assert data.clips[0].target


def test_clicks_are_heard_in_the_log_mel(clicks_heard):
    scores = clicks_heard.scores
    assert clicks_heard.metric == "beat_f"
    assert scores["beat_f"] > 0.8
    assert list(scores) == ["beat_f", "downbeat_f", "beat_f_all", "downbeat_f_all"]
    assert scores["downbeat_f"] > 0.5
    assert clicks_heard.chosen["steps"] > 0


def test_result_holds_the_figure_of_each_clip(clicks_heard):
    values, weights = clicks_heard.per_clip["beat_f"]
    assert values.shape == weights.shape == (5,)
    assert clicks_heard.scores["beat_f"] == pytest.approx(values.mean())


def test_triads_are_heard_in_the_log_mel(harmony):
    result = probe(harmony, context=1)
    assert result.metric == "wcsr"
    assert result.scores[result.metric] > 0.7


def test_what_says_nothing_scores_as_chance(harmony):
    """Features that never change: the probe answers the commonest chord throughout."""

    def constant(index):
        times = frame_times_s(1 + (int(harmony.frames[index]) - 1) // 2, 2, harmony.spectrogram)
        return np.full((len(times), 3), 7.0), times

    seconds = Counter()
    for index in clip_sides(harmony).test:
        for start, end, name in harmony.clips[index].target:
            seconds[name] += end - start
    shares = [share / seconds.total() for share in seconds.values()]
    value = probe(harmony, features=constant).scores["wcsr"]
    assert any(value == pytest.approx(share, abs=0.02) for share in shares)


def test_model_is_probed_and_the_same_seed_gives_the_same_result(harmony, steps):
    steps(300)
    features = frames.model_features(embedder(), harmony, layers=(0, -1))
    first, second = (probe(harmony, features=features, seed=3) for _ in range(2))
    assert first.scores == second.scores
    np.testing.assert_array_equal(first.per_clip["wcsr"], second.per_clip["wcsr"])


def test_progress_counts_clips_and_names_steps_of_training(harmony, monkeypatch, steps):
    steps(100)
    monkeypatch.setattr(loop, "PROGRESS_S", 0.0)
    splits, reports, clips = clip_sides(harmony), [], len(harmony.clips)
    probe(harmony, progress=lambda *report: reports.append(report))
    read = [done for done, _, note in reports if note == "features of clips"]
    assert read == list(range(1, clips + 1))
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert {total for _, total, _ in reports} == {clips}
    known = len(splits.train) + len(splits.valid)
    during = [note for done, _, note in reports if done == known]
    shown = [note for note in during if note.startswith("step ")]
    assert len(shown) == 100
    assert all(note.startswith(f"step {step}, loss ") for step, note in enumerate(shown, 1))
    validated = during.count(f"validation clip 1 of {len(splits.valid)}")
    assert validated == 1 + len(fit.SETTINGS["chords"])
    assert reports[-1][:2] == (clips, clips)


def test_evaluator_shows_training_of_each_fold(harmony, tmp_path, steps):
    steps(100)
    splits, notes = [clip_sides(harmony)] * 2, []
    quiet = (0, {}, tmp_path, lambda title: silent)
    evaluator = Evaluator(harmony, harmony.task, "linear", splits, *quiet)
    shown = Steps(lambda done, total, note: notes.append(note), 2)
    evaluator.probe_frames(frames.mel_features(harmony, context_frames=0), shown)
    for number in (1, 2):
        mine = [note for note in notes if note.startswith(f"fold {number}, ")]
        assert "step 1, loss" in " ".join(mine)
        assert mine[-1] == f"fold {number}, 15 of 15, features of clips"


def test_who_validates_is_taken_from_training_by_group(harmony, steps):
    steps(100)
    sides = clip_sides(harmony)
    alone = dataclasses.replace(sides, valid=np.array([], int))
    honest, asked = frames.mel_features(harmony, context_frames=0), []

    def features(index):
        asked.append(index)
        return honest(index)

    probe(harmony, features=features, splits=alone)
    assert sorted(asked) == sorted([*sides.train, *sides.test])  # each once, and nobody else
    one = dataclasses.replace(alone, groups=np.array(["g"] * len(harmony.clips)))
    with pytest.raises(RequestError, match="training clips are of one group"):
        probe(harmony, splits=one)


def test_test_clips_are_never_looked_at_before_the_probe_is_trained(harmony, steps):
    steps(200)
    sides = clip_sides(harmony)
    honest = frames.mel_features(harmony, context_frames=0)

    def absurd(index):
        values, times = honest(index)
        return (values * 1e6 + 1e6 if index in sides.test[1:] else values), times

    fair, odd = probe(harmony), probe(harmony, features=absurd)
    assert odd.per_clip["wcsr"][0][0] == fair.per_clip["wcsr"][0][0]
    assert odd.chosen == fair.chosen


def test_what_cannot_be_probed_is_refused(clicks):
    sides, features = clip_sides(clicks), frames.mel_features(clicks, context_frames=0)
    with pytest.raises(RequestError, match="task is one-of, expected per-frame"):
        probe_frames(Task("one-of", ("a",)), clicks, features, sides)
    for said, change in (
        ("hold values that are not numbers", lambda values: values * np.nan),
        (r"have shape \(194,\) for 194 times", lambda values: values[:, 0]),
    ):
        changed = lambda index, change=change: (change(features(index)[0]), features(index)[1])  # noqa: E731
        with pytest.raises(RequestError, match=said):
            probe(clicks, features=changed)
    with pytest.raises(RequestError, match="0 training and 5 test clips"):
        probe(clicks, splits=dataclasses.replace(sides, train=np.array([], int)))
    unlabelled = Cache(clicks.path)
    unlabelled.clips = tuple(dataclasses.replace(clip, target=None) for clip in clicks.clips)
    with pytest.raises(RequestError, match=r"clip 'data/GTZAN/0\.wav' has no labels"):
        probe(unlabelled)
    other = small.config(spectrogram={"mel_scale": "htk"})
    with pytest.raises(RequestError, match="mel_scale"):
        frames.model_features(builders.embedder(Patchifier(other, seed=0), other), clicks)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([], "hold nothing to learn: not one beat or downbeat"),
        (events(1.0, 2.0, place="1"), "no validation clip has anything that beat_f needs"),
    ],
)
def test_labels_that_ask_nothing_are_refused(targets, reason, clicks):
    data = Cache(clicks.path)
    data.clips = tuple(dataclasses.replace(clip, target=targets) for clip in data.clips)
    with pytest.raises(RequestError, match=reason):
        probe(data)

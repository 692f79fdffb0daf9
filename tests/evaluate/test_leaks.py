import csv
import dataclasses
import io
import shutil

import numpy as np
import pytest
import soundfile
import soxr

from patchifier import audio, cache, datasets, matching, spectrogram
from patchifier.cache import Cache
from patchifier.cli.evaluate import leak_line
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip
from patchifier.evaluate import leaks
from patchifier.evaluate.leaks import Leak
from patchifier.fingerprint import fingerprint

RATE = 22_050


def piece(seed, seconds=14.0):
    """A piece of its own: chords of decaying, rich notes at odd times, and noisy strokes between."""
    draw = np.random.default_rng(seed)
    sound = np.zeros(round((seconds + 2) * RATE), np.float32)
    for _ in range(round(7 * seconds)):
        start, hertz = int(draw.uniform(0, seconds) * RATE), 110 * 2 ** (draw.integers(0, 48) / 12)
        time = np.arange(round(draw.uniform(0.2, 1.2) * RATE)) / RATE
        partials = [part for part in range(1, 7) if part * hertz < 10_000]
        tones = (np.sin(2 * np.pi * part * hertz * time) / part for part in partials)
        note = sum(tones) * np.exp(-4 * time)
        stroke = draw.standard_normal(len(time)) * np.exp(-30 * time)
        struck = 0.08 * note + draw.uniform(0, 0.1) * stroke
        sound[start : start + len(time)] += struck.astype(np.float32)
    return sound[: round(seconds * RATE)]


def through_mp3(sound):
    """At 64 kbit/s."""
    rate = {"bitrate_mode": "CONSTANT", "compression_level": (160 - 64) / (160 - 8)}
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="MP3", **rate)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def cut(sound, start_s, seconds=5.0):
    return sound[round(start_s * RATE) : round((start_s + seconds) * RATE)]


class Sounds:
    """What a cache offers, straight from waveforms."""

    def __init__(self, path, sounds, groups=None, config=None):
        self.path, self.spectrogram = path, config or SpectrogramConfig()
        groups = groups or {}
        self.clips = tuple(Clip(name, f"{name}.wav", group=groups.get(name)) for name in sounds)
        waves = [sound.astype(np.float32) for sound in sounds.values()]
        log_mels = [spectrogram.log_mel(wave, self.spectrogram) for wave in waves]
        self.log_mels = [log_mel.T.astype(np.float16) for log_mel in log_mels]
        self.frames = np.array([len(log_mel) for log_mel in self.log_mels])

    def log_mel(self, index):
        return self.log_mels[index]

    def require(self, config):
        cache._require_same(self.spectrogram, config, self.path)
        return self


@pytest.fixture(scope="module")
def pieces():
    return {f"piece {seed}": piece(seed) for seed in range(8)}


@pytest.fixture(scope="module")
def library(pieces, tmp_path_factory):
    return Sounds(tmp_path_factory.mktemp("library"), pieces)


def found(library, tmp_path, **sounds):
    return leaks.leaks(library, Sounds(tmp_path, sounds))


def pairs(result):
    return [(leak.first, leak.second) for leak in result]


# --- fingerprints ---


def test_a_fingerprint_has_32_signs_and_which_are_reliable():
    log_mel = np.full((40, 64), -0.5, np.float32)
    # one band of about 1.6 kHz rises by 30 dB: it gains on the one below, the one above loses to it
    log_mel[20:, 30] = -0.2
    prints = fingerprint(log_mel)
    assert prints.shape == (40 - 12, 2)
    assert prints.dtype == np.uint32
    rising = prints[9]  # the smoothing window lies before the rise; four frames on, partly behind
    reliable = np.flatnonzero([(rising[1] >> bit) & 1 for bit in range(32)])
    assert reliable.tolist() == list(range(reliable[0], reliable[-1] + 1))
    assert 18 <= reliable[0] <= 21
    assert len(reliable) in (2, 3)
    assert (rising[0] >> reliable[0]) & 1
    assert not (rising[0] >> reliable[-1]) & 1
    assert not prints[[0, -1], 1].any()  # nothing changes at the ends


def test_a_fingerprint_ignores_level_and_frames_of_silence(library):
    log_mel = library.log_mel(0).astype(np.float32)
    differs = fingerprint(log_mel - 0.2) ^ fingerprint(log_mel)
    # of 32 bits: what lies on the edge and is rounded
    assert np.bitwise_count(differs).mean() < 1e-3
    assert not fingerprint(np.full((100, 64), -1.0, np.float16))[:, 1].any()


@pytest.mark.parametrize("frames", [0, 1, 12])
def test_too_few_frames_have_no_fingerprint(frames):
    assert fingerprint(np.zeros((frames, 64), np.float16)).shape == (0, 2)


def test_a_log_mel_with_bands_first_is_refused():
    with pytest.raises(RequestError, match=r"expected \(T, 64\), frames first"):
        fingerprint(np.zeros((64, 100), np.float16))


def test_values_that_are_not_numbers_are_not_reliable(library):
    log_mel = library.log_mel(0).copy()
    log_mel[50] = np.nan
    assert not fingerprint(log_mel)[50 - 12 : 51, 1].any()


def test_other_settings_give_a_fingerprint_too_unless_they_are_too_coarse(pieces, tmp_path):
    fine = SpectrogramConfig(n_mels=128, hop_length=256, mel_scale="htk")
    sounds = {name: pieces[name] for name in ("piece 0", "piece 1")}
    one = Sounds(tmp_path / "a", sounds, config=fine)
    other = Sounds(tmp_path / "b", {"x": cut(pieces["piece 1"], 4.0)}, config=fine)
    (leak,) = leaks.leaks(one, other)
    assert (leak.first, leak.offset_s) == ("piece 1", pytest.approx(-4.0, abs=0.02))
    said = "mel bands between 200 and 5000 Hz, expected at least 16"
    with pytest.raises(RequestError, match=said):
        fingerprint(np.zeros((100, 16)), SpectrogramConfig(n_mels=16))


# --- what is found ---


def noisy(sound):
    """With noise 20 dB below it."""
    noise = np.random.default_rng(0).standard_normal(len(sound))
    return sound + 0.1 * np.sqrt((sound**2).mean()) * noise


CHANGES = {
    "as it is": lambda sound: sound,
    "mp3": through_mp3,
    "gain -20 dB": lambda sound: 0.1 * sound,
    "resampled": lambda sound: soxr.resample(soxr.resample(sound, RATE, 16_000), 16_000, RATE),
    "noise": noisy,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_five_seconds_of_a_piece_are_found_at_their_place(change, library, pieces, tmp_path):
    starts = {name: 3.0 + 0.337 * number for number, name in enumerate(pieces)}
    cuts = {f"cut of {name}": change(cut(pieces[name], start)) for name, start in starts.items()}
    result = found(library, tmp_path, **cuts)
    assert sorted(pairs(result)) == sorted((name, f"cut of {name}") for name in pieces)
    for leak in result:
        assert leak.kind == "same recording"
        assert leak.offset_s == pytest.approx(-starts[leak.first], abs=0.03)
        assert leak.overlap_s == pytest.approx(5.0, abs=0.05)
        assert 0.8 < leak.score <= 1
    assert [leak.score for leak in result] == sorted((leak.score for leak in result), reverse=True)


def test_an_overlap_of_five_seconds_at_the_edges_is_found(library, pieces, tmp_path):
    before = np.concatenate([piece(100, 9.0), cut(pieces["piece 2"], 0.0)])
    behind = np.concatenate([cut(pieces["piece 5"], 9.0), piece(101, 9.0)])
    result = {leak.second: leak for leak in found(library, tmp_path, before=before, behind=behind)}
    assert {name: leak.first for name, leak in result.items()} == {
        "before": "piece 2",
        "behind": "piece 5",
    }
    assert result["before"].offset_s == pytest.approx(9.0, abs=0.03)
    assert result["behind"].offset_s == pytest.approx(-9.0, abs=0.03)
    assert all(leak.overlap_s == pytest.approx(5.0, abs=0.06) for leak in result.values())


def test_the_speed_may_differ_by_a_hundredth_but_not_by_a_semitone(library, pieces, tmp_path):
    sound = cut(pieces["piece 3"], 2.0, 8.0)
    faster = soxr.resample(sound, RATE * 1.01, RATE)
    assert pairs(found(library, tmp_path, x=faster)) == [("piece 3", "x")]
    assert not found(library, tmp_path, x=soxr.resample(sound, RATE * 1.06, RATE))


# --- what is not ---


def test_other_pieces_are_not_found(library, tmp_path):
    assert not found(library, tmp_path, **{f"other {seed}": piece(seed) for seed in range(20, 28)})


def test_less_than_three_seconds_are_not_enough(library, pieces, tmp_path):
    assert not found(library, tmp_path, x=cut(pieces["piece 0"], 4.0, 2.8))
    assert len(found(library, tmp_path, x=cut(pieces["piece 0"], 4.0, 3.3))) == 1


def test_silence_and_steady_sounds_are_not_the_same_recording(tmp_path, tone, silence, noise):
    chord = [tone(hertz, seconds=9, level=0.2) for hertz in (330, 440, 550)]
    steady = {
        "silence": silence(8.0),
        "silence too": silence(10.0),
        "tone": tone(440, seconds=8),
        "tone too": tone(440, seconds=10),
        "chord": sum(chord)[: 8 * RATE],
        "chord too": 0.5 * sum(chord),
        "hum and noise": tone(100, seconds=8) + noise(8.0, seed=1),
        "hum and noise too": tone(100, seconds=8) + noise(8.0, seed=2),
        "a click": np.concatenate([silence(4.0), noise(0.01), silence(4.0)]),
        "a click too": np.concatenate([silence(4.0), noise(0.01, seed=3), silence(4.0)]),
    }
    library = Sounds(tmp_path, steady)
    assert not leaks.leaks(library, library)
    # noise that is the same to the sample is the same recording
    del steady["hum and noise"], steady["hum and noise too"]
    assert not leaks.leaks(library, Sounds(tmp_path / "other", steady))


def test_clips_without_any_frame_of_fingerprint_are_passed(library, tmp_path, silence):
    assert not found(library, tmp_path, nothing=silence(0.0001), little=silence(0.2))


# --- pairs ---


def test_inside_a_set_each_pair_comes_once_other_groups_first(pieces, tmp_path):
    sounds = {
        "a": pieces["piece 0"],
        "b": through_mp3(cut(pieces["piece 0"], 2.0, 9.0)),
        "c": pieces["piece 1"],
        "d": pieces["piece 1"],
        "e": pieces["piece 2"],
        "f": pieces["piece 3"],
    }
    library = Sounds(tmp_path, sounds, groups={"a": "one", "b": "two", "c": "three", "d": "three"})
    result = leaks.leaks(library, library)
    assert pairs(result) == [("a", "b"), ("c", "d")]
    assert [leak.one_group for leak in result] == [False, True]
    assert result[1].score == 1 > result[0].score  # and yet behind
    ungrouped = Sounds(tmp_path, sounds, groups={"a": "one"})
    assert leaks.leaks(library, ungrouped)[0].score == 1  # no groups, no precedence


def test_clips_of_one_id_in_two_sets_are_compared(library, pieces, tmp_path):
    result = found(library, tmp_path, **{"piece 4": pieces["piece 4"]})
    assert pairs(result) == [("piece 4", "piece 4")]


def test_an_index_in_blocks_gives_the_same_result(pieces, tmp_path, monkeypatch):
    sounds = pieces | {f"copy of {name}": cut(sound, 1.0, 12.0) for name, sound in pieces.items()}
    library, other, reports = Sounds(tmp_path, sounds), Sounds(tmp_path / "other", sounds), []
    whole = leaks.leaks(library, library), leaks.leaks(library, other)
    monkeypatch.setattr(leaks, "BLOCK_FRAMES", 1500)
    assert len(list(leaks._blocks(library))) > 3
    progress = lambda *report: reports.append(report)  # noqa: E731
    blocks = leaks.leaks(library, library), leaks.leaks(library, other, progress=progress)
    assert blocks == whole
    assert [len(result) for result in whole] == [8, 32]
    assert [report[0] for report in reports] == list(range(1, 1 + reports[-1][1]))


def test_a_sound_heard_everywhere_does_not_cost_everything(tmp_path, pieces, monkeypatch):
    monkeypatch.setattr(matching, "COMMON", 10)
    loop = np.tile(cut(pieces["piece 0"], 3.0, 0.5), 28)
    sounds = {f"loop {number}": loop for number in range(12)}
    library = Sounds(tmp_path, sounds | dict.fromkeys(("piece 0", "copy"), pieces["piece 0"]))
    assert ("piece 0", "copy") in pairs(leaks.leaks(library, library))


def test_requests_that_make_no_sense_are_refused(library, pieces, tmp_path):
    other = Sounds(tmp_path, {"x": pieces["piece 0"]}, config=SpectrogramConfig(hop_length=256))
    with pytest.raises(RequestError, match="hop_length is 256, not 512"):
        leaks.leaks(library, other)
    with pytest.raises(RequestError, match=r"expected 0\.5 < similar <= same <= 1"):
        leaks.leaks(library, library, similar=0.9)


# --- with real caches ---


def test_leaks_are_written_as_rows_and_tell_what_they_are(tmp_path):
    leak, path = (
        Leak("å, b", 'say "c"', "similar", 0.704, -1.5, 5.02, one_group=True),
        tmp_path / "l",
    )
    leaks.save([leak], path / "leaks.csv")
    (row,) = csv.DictReader((path / "leaks.csv").read_text(encoding="utf-8").splitlines())
    assert row == {name: str(value) for name, value in dataclasses.asdict(leak).items()}
    leaks.save([], path / "leaks.csv")
    header = "first,second,kind,score,offset_s,overlap_s,one_group\n"
    assert (path / "leaks.csv").read_text(encoding="utf-8") == header
    said = 'similar (0.70): å, b = say "c" at -1.50 s, 5.0 s side by side, of one group'
    assert leak_line(leak) == said


def test_caches_on_disk_are_compared(small_cache, tmp_path):
    shutil.copytree(small_cache, tmp_path / "copy")
    assert not leaks.leaks(Cache(small_cache), Cache(small_cache))
    long_enough = ["album2/track4.wav", "album2/track5.wav"]  # 3 and 3.5 s
    result = leaks.leaks(Cache(small_cache), Cache(tmp_path / "copy"))
    assert pairs(result) == [(name, name) for name in long_enough]
    assert {(leak.offset_s, leak.score) for leak in result} == {(0, 1)}


def test_real_music_is_told_apart_and_its_excerpts_are_found(tmp_path):
    clips = datasets.load("demo").clips[::4]
    sounds = {clip.id: audio.load(clip.path) for clip in clips}
    starts = {clip.id: 1.0 + 0.47 * number for number, clip in enumerate(clips)}
    library = Sounds(tmp_path, sounds)
    quiet = {name: 0.1 * cut(sound, starts[name]) for name, sound in sounds.items()}
    excerpts = {name: through_mp3(sound) for name, sound in quiet.items()}
    assert not leaks.leaks(library, library)
    result = found(library, tmp_path / "excerpts", **excerpts)
    assert sorted(pairs(result)) == sorted((name, name) for name in sounds)
    assert all(leak.offset_s == pytest.approx(-starts[leak.first], abs=0.03) for leak in result)
    assert min(leak.score for leak in result) > 0.95

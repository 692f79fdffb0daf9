import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from patchifier import audio, cache, jobs, spectrogram
from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate import robustness
from patchifier.evaluate.robustness import PERTURBATIONS, generator_of, perturb, pink_noise, retimed
from patchifier.io import silent
from patchifier.tasks import Task

RATE = 22_050


def perturbed(name, waveform, rate=RATE, clip_id="a clip"):
    return PERTURBATIONS[name].apply(waveform, rate, generator_of(clip_id))


def power(waveform):
    return np.mean(waveform.astype(float) ** 2)


def level_db(waveform, reference):
    return 10 * np.log10(power(waveform[2000:-2000]) / power(reference[2000:-2000]))


def loudest_hz(waveform):
    size = 2**19
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), size)).argmax() * RATE / size


def lag(late, early):
    size = 2 ** int(np.ceil(np.log2(len(late) + len(early))))
    spectrum = np.fft.rfft(late, size) * np.conj(np.fft.rfft(early, size))
    at = int(np.fft.irfft(spectrum, size).argmax())
    return at if at < size // 2 else at - size


# --- each perturbation ---


def test_the_table_of_the_issue_is_there():
    names = "mp3-32 gain-20 pink-10 low-pass-4k pitch+1 stretch-1.1"
    assert list(PERTURBATIONS) == names.split()


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("samples", [1, 2, 3, 100, 2047, 5000])
def test_very_short_clips_work_and_have_the_right_length(name, samples, noise):
    waveform = noise(0.5)[:samples]
    result = perturbed(name, waveform)
    assert result.dtype == np.float32
    assert result.shape == (max(1, round(samples / PERTURBATIONS[name].speed)),)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_silence_stays_silent(name, silence):
    assert np.abs(perturbed(name, silence(1.0))).max() == 0


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_waveform_given_is_left_alone_and_the_result_is_the_same_twice(name, noise):
    waveform = noise(1.0)
    before = waveform.copy()
    assert np.array_equal(perturbed(name, waveform), perturbed(name, waveform))
    assert np.array_equal(waveform, before)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_nothing_is_clipped_at_full_scale(name, tone):
    loud = tone(440, seconds=2, level=3.0)
    peak = np.abs(perturbed(name, loud)[4000:-4000]).max()
    expected = 0.3 if name == "gain-20" else 3.0
    assert 0.85 * expected < peak < 2.0 * expected


def test_gain_is_20_db_in_the_log_mel(noise):
    waveform = noise(2.0)
    before, after = (
        spectrogram.log_mel(wave) for wave in (waveform, perturbed("gain-20", waveform))
    )
    np.testing.assert_allclose(after - before, -0.2, atol=1e-4)


def test_noise_lies_10_db_below_the_clip(tone):
    waveform = tone(440, seconds=3)
    noise_alone = perturbed("pink-10", waveform) - waveform
    ratio = power(waveform) / power(noise_alone)
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.01)


def test_noise_is_pink():
    samples = pink_noise(60 * RATE, RATE, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    octaves = 31.25 * 2.0 ** np.arange(9)  # to 8 kHz: as much power in each
    parts = [power[(hertz >= low) & (hertz < 2 * low)] for low in octaves[:-1]]
    levels = [10 * np.log10(part.mean()) for part in parts]
    slope = np.polyfit(np.arange(len(levels)), levels, 1)[0]
    assert slope == pytest.approx(-3.01, abs=0.1)
    assert np.abs(np.diff(levels) + 3.01).max() < 0.6
    assert power[hertz < 19.9].sum() < 1e-12 * power.sum()
    assert np.mean(samples**2) == pytest.approx(1)


def test_low_pass_keeps_1_khz_and_takes_6_khz_away(tone):
    low = tone(1000, seconds=2)
    for hertz, level, tolerance in ((1000, 0, 0.01), (3400, 0, 0.05), (4000, -6, 0.2)):
        found = level_db(perturbed("low-pass-4k", tone(hertz, seconds=2)), low)
        assert found == pytest.approx(level, abs=tolerance)
    assert level_db(perturbed("low-pass-4k", tone(6000, seconds=2)), low) < -75
    inside = slice(500, -500)
    assert np.allclose(perturbed("low-pass-4k", low)[inside], low[inside], atol=1e-3)  # no delay


def test_pitch_goes_one_semitone_up(tone):
    waveform = tone(440, seconds=3)
    assert loudest_hz(perturbed("pitch+1", waveform)) == pytest.approx(466.16, abs=1)
    assert len(perturbed("pitch+1", waveform)) == len(waveform)


def test_stretch_is_faster_and_keeps_the_pitch(tone):
    waveform = np.concatenate([np.zeros(2 * RATE, np.float32), tone(440, seconds=2)])
    result = perturbed("stretch-1.1", waveform)
    assert len(result) == round(4 * RATE / 1.1)
    assert loudest_hz(result) == pytest.approx(440, abs=1)
    begins = np.flatnonzero(np.abs(result) > 0.25)[0] / RATE
    # what began at 2 s begins at 2 s / speed
    assert begins == pytest.approx(2 / PERTURBATIONS["stretch-1.1"].speed, abs=0.06)


@pytest.mark.parametrize("rate", [16_000, RATE, 44_100])
def test_mp3_has_32_kbits(rate, noise, monkeypatch):
    sizes = []

    class Counted(io.BytesIO):
        def seek(self, *place):
            sizes.append(self.getbuffer().nbytes)
            return super().seek(*place)

    robustness._mp3_delay(rate)  # found before, so that the one file counted is the clip's
    monkeypatch.setattr(robustness.io, "BytesIO", Counted)
    perturbed("mp3-32", noise(20.0, rate=rate), rate)
    assert max(sizes) * 8 / 20 == pytest.approx(32_000, rel=0.03)


@pytest.mark.parametrize("rate", [8_000, 16_000, RATE, 24_000, 44_100])
def test_mp3_stays_aligned_with_the_original(rate, noise):
    waveform = np.cumsum(noise(3.0, rate=rate) * np.hanning(3 * rate)).astype(np.float32)
    waveform = (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)
    click = noise(3.0, rate=rate)
    assert lag(perturbed("mp3-32", click, rate), click) == 0
    result = perturbed("mp3-32", waveform, rate)
    assert len(result) == len(waveform)
    assert not np.array_equal(result, waveform)


def test_mp3_keeps_the_end_of_a_clip(tone):
    waveform = tone(440, seconds=1.0)
    end = slice(-5000, None)
    level = level_db(perturbed("mp3-32", waveform)[end], waveform[end])
    assert level == pytest.approx(0, abs=0.5)


def test_sample_rates_that_make_no_sense_are_named(noise):
    with pytest.raises(RequestError, match="mp3 knows no sample rate of 22000 Hz"):
        perturbed("mp3-32", noise(1.0), 22_000)
    with pytest.raises(RequestError, match="leaves nothing out"):
        perturbed("low-pass-4k", noise(1.0), 8_000)


def test_what_is_drawn_depends_on_the_clip_alone(noise, child_environment):
    waveform = noise(0.2)
    one, other = (perturbed("pink-10", waveform, clip_id=name) for name in ("é/1", "é/2"))
    assert not np.array_equal(one, other)
    code = "from patchifier.evaluate.robustness import generator_of as of"
    draw = "of('é/1').integers(0, 10**9, 5).tolist()"
    command = [sys.executable, "-c", f"{code}; print({draw})"]
    elsewhere = subprocess.check_output(command, env=child_environment, text=True)
    assert elsewhere.strip() == str(generator_of("é/1").integers(0, 10**9, 5).tolist())


def test_label_times_follow_the_speed():
    assert retimed([[0.0, 1.1, "A"], [1.1, 2.2, 1]], 1.1) == [
        [0.0, pytest.approx(1.0), "A"],
        [pytest.approx(1.0), pytest.approx(2.0), 1],
    ]


# --- a whole set ---


@pytest.fixture(scope="module")
def beats(tmp_path_factory, tone):
    """Three parts of one file, with per-frame targets, in a cache."""
    folder = tmp_path_factory.mktemp("beats")
    parts = [tone(220, seconds=2), tone(440, seconds=2), tone(880, seconds=2, level=1.5)]
    soundfile.write(folder / "all.wav", np.concatenate(parts), RATE, subtype="FLOAT")
    path, target = str(folder / "all.wav"), [[0.0, 0.55, "beat"], [1.1, 1.65, "downbeat"]]
    facts = {"split": "test", "subsets": ("x",), "target": target}
    clips = tuple(
        Clip(f"pärt/{n}", path, start_s=2.0 * n, end_s=2.0 * n + 2, group=f"g{n}", **facts)
        for n in range(3)
    )
    task = Task("per-frame", ("beat", "downbeat"), "beats")
    cache.prepare(Dataset("beats", clips, task), folder / "cache", workers=1)
    return Cache(folder / "cache")


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_perturbed_set_keeps_ids_order_and_targets_and_is_not_made_twice(
    beats, tmp_path, threads
):
    reports = []

    def make(progress, indices=(2, 0)):
        options = {"workers": 1, "progress": progress}
        return perturb(beats, indices, "stretch-1.1", tmp_path / "out", **options)

    made = make(lambda *report: reports.append(report))
    facts = [(clip.id, clip.group, clip.split, clip.subsets) for clip in made.clips]
    assert facts == [(f"pärt/{n}", f"g{n}", "test", ("x",)) for n in (2, 0)]
    assert made.task == beats.task
    assert np.allclose([row[:2] for row in made.clips[0].target], [[0, 0.5], [1.0, 1.5]])
    assert [row[2] for row in made.clips[0].target] == ["beat", "downbeat"]
    assert made.spectrogram == beats.spectrogram
    assert made.frames.tolist() == [1 + round(2 * RATE / 1.1) // 512] * 2
    assert reports[-1][:2] == (2, 2)
    # Loud sound goes to a format that holds it, and each clip is its own part of the file.
    sounds = [audio.load(clip.path) for clip in made.clips]
    assert [clip.path.rsplit(".")[-1] for clip in made.clips] == ["wav", "flac"]
    assert np.abs(sounds[0]).max() > 1.1
    assert [round(loudest_hz(sound) / 110) for sound in sounds] == [8, 2]
    before = files(tmp_path)
    again = make(lambda *report: pytest.fail("worked again"), np.array([2, 0]))
    assert files(tmp_path) == before
    assert again.clips == made.clips


def test_a_set_that_was_cut_off_goes_on_where_it_was(beats, tmp_path, monkeypatch, threads):
    written, write = [], robustness._write

    def counted(shared, tasks):
        written.extend(clip.id for clip, _ in tasks)
        return write(shared, tasks)

    def interrupt(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "_write", counted)
    monkeypatch.setattr(jobs, "AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        perturb(beats, [0, 1, 2], "gain-20", tmp_path, workers=1, progress=interrupt)
    assert written == ["pärt/0", "pärt/1"]
    made = perturb(beats, [0, 1, 2], "gain-20", tmp_path, workers=1)
    assert written == ["pärt/0", "pärt/1", "pärt/2"]
    targets = [clip.target for clip in beats.clips]
    assert [clip.target for clip in made.clips] == targets  # at the same speed
    change = made.log_mel(0).astype(float) - beats.log_mel(0)
    assert np.median(change[beats.log_mel(0) > -0.5]) == pytest.approx(-0.2, abs=2e-3)


def test_a_second_job_in_the_same_folder_is_refused(beats, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    said = "another perturbation is working in this folder"
    with jobs.folder_lock(out, "perturbation"), pytest.raises(RequestError, match=said):
        perturb(beats, [0], "gain-20", out)


@pytest.mark.parametrize(
    ("indices", "name", "said"),
    [
        ([0], "mp3", "no perturbation 'mp3', expected one of mp3-32"),
        ([3], "gain-20", "from 0 to 2"),
        ([], "gain-20", "at least one"),
        ([0, 0], "gain-20", "none twice"),
    ],
)
def test_requests_that_make_no_sense_are_refused(indices, name, said, beats, tmp_path):
    with pytest.raises(RequestError, match=said):
        perturb(beats, indices, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_audio_that_is_gone_is_named(beats, tmp_path):
    gone = Cache(beats.path)
    gone.clips = (dataclasses.replace(gone.clips[0], path=str(tmp_path / "gone.wav")),)
    with pytest.raises(RequestError, match=r"'pärt/0'.*gone\.wav cannot be read"):
        perturb(gone, [0], "gain-20", tmp_path / "out")


def test_processes_write_what_one_alone_writes(beats, tmp_path):
    stems = [tmp_path / str(number) for number in range(3)]
    robustness._write_all(beats.clips, stems, "pink-10", RATE, 2, silent)
    for clip, stem in zip(beats.clips, stems, strict=True):
        sound = audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s)
        alone = perturbed("pink-10", sound, clip_id=clip.id)
        assert np.abs(audio.load(robustness._written(stem)) - alone).max() <= 2**-23

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

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


def level_db(waveform, reference):
    return 10 * np.log10(
        np.mean(waveform[2000:-2000].astype(float) ** 2)
        / np.mean(reference[2000:-2000].astype(float) ** 2)
    )


def loudest_hz(waveform):
    size = 2**19
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), size)).argmax() * RATE / size


def lag(late, early):
    size = 2 ** int(np.ceil(np.log2(len(late) + len(early))))
    at = int(
        np.fft.irfft(np.fft.rfft(late, size) * np.conj(np.fft.rfft(early, size)), size).argmax()
    )
    return at if at < size // 2 else at - size


# --- each perturbation ---


def test_the_table_of_the_issue_is_there():
    assert list(PERTURBATIONS) == [
        "mp3-32",
        "gain-20",
        "pink-10",
        "low-pass-4k",
        "pitch+1",
        "stretch-1.1",
    ]


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
    change = spectrogram.log_mel(
        torch.from_numpy(perturbed("gain-20", waveform))
    ) - spectrogram.log_mel(torch.from_numpy(waveform))
    assert torch.allclose(change, torch.tensor(-0.2), atol=1e-4)


def test_noise_lies_10_db_below_the_clip(tone):
    waveform = tone(440, seconds=3)
    noise_alone = perturbed("pink-10", waveform) - waveform
    assert 10 * np.log10(
        np.mean(waveform.astype(float) ** 2) / np.mean(noise_alone.astype(float) ** 2)
    ) == pytest.approx(10, abs=0.01)


def test_noise_is_pink():
    samples = pink_noise(60 * RATE, RATE, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    octaves = 31.25 * 2.0 ** np.arange(9)  # to 8 kHz: as much power in each
    levels = [
        10 * np.log10(power[(hertz >= low) & (hertz < 2 * low)].mean()) for low in octaves[:-1]
    ]
    slope = np.polyfit(np.arange(len(levels)), levels, 1)[0]
    assert slope == pytest.approx(-3.01, abs=0.1)
    assert np.abs(np.diff(levels) + 3.01).max() < 0.6
    assert power[hertz < 19.9].sum() < 1e-12 * power.sum()
    assert np.mean(samples**2) == pytest.approx(1)


def test_low_pass_keeps_1_khz_and_takes_6_khz_away(tone):
    low, high = tone(1000, seconds=2), tone(6000, seconds=2)
    assert level_db(perturbed("low-pass-4k", low), low) == pytest.approx(0, abs=0.01)
    assert level_db(perturbed("low-pass-4k", high), high) < -75
    assert level_db(perturbed("low-pass-4k", tone(3400, seconds=2)), low) == pytest.approx(
        0, abs=0.05
    )
    assert level_db(perturbed("low-pass-4k", tone(4000, seconds=2)), low) == pytest.approx(
        -6, abs=0.2
    )
    assert np.allclose(
        perturbed("low-pass-4k", low)[500:-500], low[500:-500], atol=1e-3
    )  # no delay


def test_pitch_goes_one_semitone_up(tone):
    waveform = tone(440, seconds=3)
    assert loudest_hz(perturbed("pitch+1", waveform)) == pytest.approx(466.16, abs=1)
    assert len(perturbed("pitch+1", waveform)) == len(waveform)


def test_stretch_is_faster_and_keeps_the_pitch(tone):
    waveform = np.concatenate([np.zeros(2 * RATE, np.float32), tone(440, seconds=2)])
    result = perturbed("stretch-1.1", waveform)
    assert len(result) == round(4 * RATE / 1.1)
    assert loudest_hz(result) == pytest.approx(440, abs=1)
    begins = (
        np.flatnonzero(np.abs(result) > 0.25)[0] / RATE
    )  # what began at 2 s begins at 2 s / speed
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
    assert level_db(perturbed("mp3-32", waveform)[-5000:], waveform[-5000:]) == pytest.approx(
        0, abs=0.5
    )


def test_sample_rates_that_make_no_sense_are_named(noise):
    with pytest.raises(RequestError, match="mp3 knows no sample rate of 22000 Hz"):
        perturbed("mp3-32", noise(1.0), 22_000)
    with pytest.raises(RequestError, match="leaves nothing out"):
        perturbed("low-pass-4k", noise(1.0), 8_000)


def test_what_is_drawn_depends_on_the_clip_alone(noise, child_environment):
    waveform = noise(0.2)
    assert not np.array_equal(
        perturbed("pink-10", waveform, clip_id="é/1"), perturbed("pink-10", waveform, clip_id="é/2")
    )
    code = "from patchifier.evaluate.robustness import generator_of; print(*generator_of('é/1').integers(0, 10**9, 5))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert elsewhere.split() == [
        str(number) for number in generator_of("é/1").integers(0, 10**9, 5)
    ]


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
    sound = np.concatenate(
        [tone(220, seconds=2), tone(440, seconds=2), tone(880, seconds=2, level=1.5)]
    )
    soundfile.write(folder / "all.wav", sound, RATE, subtype="FLOAT")
    clips = [
        Clip(
            f"pärt/{number}",
            str(folder / "all.wav"),
            start_s=2.0 * number,
            end_s=2.0 * number + 2,
            group=f"g{number}",
            split="test",
            subsets=("x",),
        )
        for number in range(3)
    ]
    clips = [
        dataclasses.replace(clip, target=[[0.0, 0.55, "beat"], [1.1, 1.65, "downbeat"]])
        for clip in clips
    ]
    cache.prepare(
        Dataset("beats", tuple(clips), Task("per-frame", ("beat", "downbeat"), "beats")),
        folder / "cache",
        workers=1,
    )
    return Cache(folder / "cache")


def files(folder):
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_perturbed_set_keeps_ids_order_and_targets_and_is_not_made_twice(
    beats, tmp_path, threads
):
    out, reports = tmp_path / "out", []
    made = perturb(
        beats,
        [2, 0],
        "stretch-1.1",
        out,
        workers=1,
        progress=lambda *report: reports.append(report),
    )
    assert [clip.id for clip in made.clips] == ["pärt/2", "pärt/0"]
    assert [(clip.group, clip.split, clip.subsets) for clip in made.clips] == [
        ("g2", "test", ("x",)),
        ("g0", "test", ("x",)),
    ]
    assert made.task == beats.task
    assert np.allclose([row[:2] for row in made.clips[0].target], [[0, 0.5], [1.0, 1.5]])
    assert [row[2] for row in made.clips[0].target] == ["beat", "downbeat"]
    assert made.spectrogram == beats.spectrogram
    assert made.frames.tolist() == [1 + round(2 * RATE / 1.1) // 512] * 2
    assert reports[-1][:2] == (2, 2)
    # Loud sound goes to a format that holds it.
    assert [clip.path.rsplit(".")[-1] for clip in made.clips] == ["wav", "flac"]
    assert np.abs(audio.load(made.clips[0].path)).max() > 1.1
    # Each clip was cut from its own part of the file.
    assert [round(loudest_hz(audio.load(clip.path)) / 110) for clip in made.clips] == [8, 2]

    before = files(out)
    again = perturb(
        beats,
        np.array([2, 0]),
        "stretch-1.1",
        out,
        workers=2,
        progress=lambda *report: pytest.fail("worked again"),
    )
    assert files(out) == before
    assert again.clips == made.clips


def test_a_set_that_was_cut_off_goes_on_where_it_was(beats, tmp_path, monkeypatch, threads):
    written, write = [], robustness._write_clip

    def counted(*arguments):
        written.append(arguments[2].id)
        write(*arguments)

    def interrupt(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "_write_clip", counted)
    monkeypatch.setattr(jobs, "AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        perturb(beats, [0, 1, 2], "gain-20", tmp_path, workers=1, progress=interrupt)
    assert written == ["pärt/0", "pärt/1"]
    made = perturb(beats, [0, 1, 2], "gain-20", tmp_path, workers=1)
    assert written == ["pärt/0", "pärt/1", "pärt/2"]
    assert [clip.target for clip in made.clips] == [
        clip.target for clip in beats.clips
    ]  # at the same speed
    change = made.log_mel(0).astype(float) - beats.log_mel(0)
    assert np.median(change[beats.log_mel(0) > -0.5]) == pytest.approx(-0.2, abs=2e-3)


def test_a_second_job_in_the_same_folder_is_refused(beats, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        jobs.folder_lock(tmp_path / "out", "perturbation"),
        pytest.raises(RequestError, match="another perturbation is working in this folder"),
    ):
        perturb(beats, [0], "gain-20", tmp_path / "out")


def test_requests_that_make_no_sense_are_refused(beats, tmp_path):
    with pytest.raises(RequestError, match="no perturbation 'mp3', expected one of mp3-32"):
        perturb(beats, [0], "mp3", tmp_path)
    with pytest.raises(RequestError, match="from 0 to 2"):
        perturb(beats, [3], "gain-20", tmp_path)
    with pytest.raises(RequestError, match="at least one"):
        perturb(beats, [], "gain-20", tmp_path)
    with pytest.raises(RequestError, match="none twice"):
        perturb(beats, [0, 0], "gain-20", tmp_path)
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
        alone = perturbed(
            "pink-10",
            audio.load(clip.path, start_s=clip.start_s, end_s=clip.end_s),
            clip_id=clip.id,
        )
        assert np.abs(audio.load(robustness._written(stem)) - alone).max() <= 2**-23

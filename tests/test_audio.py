"""From a file to a waveform: formats, rates, parts, bounded memory, and every way in which a file can be bad."""

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import audio, decode
from patchifier.config import RequestError
from tests import audio_files as made

RATE = 22_050
CODEC_FRAME = 1152  # samples of an mp3 frame; Vorbis and Opus have frames of the same order

# name: suffix, what soundfile is told, whether the format is lossless, rate
FORMATS: dict[str, tuple[str, dict[str, Any], bool, int]] = {
    "wav-16": (".wav", {"subtype": "PCM_16"}, True, 44_100),
    "wav-24": (".wav", {"subtype": "PCM_24"}, True, 44_100),
    "wav-float": (".wav", {"subtype": "FLOAT"}, True, 44_100),
    "flac": (".flac", {}, True, 44_100),
    "aiff": (".aiff", {}, True, 44_100),
    "ogg-vorbis": (".ogg", {"format": "OGG", "subtype": "VORBIS"}, False, 44_100),
    "opus": (".opus", {"format": "OGG", "subtype": "OPUS"}, False, 48_000),
    "mp3": (".mp3", {"format": "MP3"}, False, 44_100),
}
CONTAINERS = {
    "wav": "WAV",
    "flac": "FLAC",
    "ogg": "OGG",
    "mp3": "MP3",
    "aiff": "AIFF",
    "au": "AU",
    "caf": "CAF",
    "w64": "W64",
    "rf64": "RF64",
}


def write_m4a(path: Path, sound: np.ndarray, rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def peak_hz(wave: np.ndarray, rate: int = RATE) -> float:
    return float(
        np.fft.rfftfreq(len(wave), 1 / rate)[
            np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax()
        ]
    )


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave.astype(np.float64) ** 2)))


# --- formats and rates ---


@pytest.mark.parametrize("name", FORMATS)
def test_format_reads_back_with_its_length_pitch_and_level(
    name: str, tmp_path: Path, tone: Callable
) -> None:
    suffix, options, lossless, rate = FORMATS[name]
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(440, seconds=4, rate=rate), rate, **options)
    wave = audio.load(path)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert abs(len(wave) - 4 * RATE) <= (0 if lossless else CODEC_FRAME)
    assert peak_hz(wave) == pytest.approx(440, abs=1)
    assert rms(wave[RATE:-RATE]) == pytest.approx(0.5 / 2**0.5, rel=1e-3 if lossless else 0.03)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
def test_rate_conversion_keeps_a_tone_sample_by_sample(
    rate: int, tmp_path: Path, tone: Callable
) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(1000, seconds=2, rate=rate), rate, subtype="FLOAT")
    wave = audio.load(tmp_path / "tone.wav")
    assert len(wave) == 2 * RATE
    inner = slice(2000, -2000)  # a resampler rings at both ends
    np.testing.assert_allclose(wave[inner], tone(1000, seconds=2)[inner], atol=1e-4)


def test_resampling_lets_nothing_above_the_new_limit_through(
    tmp_path: Path, tone: Callable
) -> None:
    soundfile.write(
        tmp_path / "high.wav", tone(15_000, seconds=2, rate=44_100), 44_100, subtype="FLOAT"
    )
    assert rms(audio.load(tmp_path / "high.wav")[2000:-2000]) < 1e-4


def test_other_target_rate_is_obeyed(tmp_path: Path, tone: Callable) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(1000, seconds=1), RATE)
    wave = audio.load(tmp_path / "tone.wav", sample_rate=16_000)
    assert len(wave) == 16_000
    assert peak_hz(wave, 16_000) == pytest.approx(1000, abs=1)


def test_eight_channels_are_mixed_to_the_mean_of_those_that_are_not_the_lfe(
    tmp_path: Path, tone: Callable
) -> None:
    one = tone(440, seconds=1)
    soundfile.write(
        tmp_path / "eight.wav",
        np.stack([one * channel / 8 for channel in range(8)], axis=1),
        RATE,
        subtype="FLOAT",
    )
    np.testing.assert_allclose(audio.load(tmp_path / "eight.wav"), one * 25 / 7 / 8, atol=1e-6)


def test_opposite_channels_cancel(tmp_path: Path, tone: Callable) -> None:
    one = tone(440)
    soundfile.write(tmp_path / "opposite.wav", np.stack([one, -one], axis=1), RATE, subtype="FLOAT")
    assert np.abs(audio.load(tmp_path / "opposite.wav")).max() == 0


def test_m4a_is_read_through_pyav(tmp_path: Path, tone: Callable) -> None:
    write_m4a(tmp_path / "tone.m4a", tone(440, seconds=3, rate=44_100), 44_100)
    wave = audio.load(tmp_path / "tone.m4a")
    assert len(wave) == pytest.approx(3 * RATE, abs=3 * 1024)  # AAC's priming and padding
    assert peak_hz(wave) == pytest.approx(440, abs=1)
    assert rms(wave[RATE:-RATE]) == pytest.approx(0.5 / 2**0.5, rel=0.03)


def test_part_of_an_m4a_is_that_part_of_the_whole(tmp_path: Path, noise: Callable) -> None:
    write_m4a(tmp_path / "noise.m4a", noise(3), RATE)
    whole = audio.load(tmp_path / "noise.m4a")
    np.testing.assert_array_equal(
        audio.load(tmp_path / "noise.m4a", start_s=1, end_s=2), whole[RATE : 2 * RATE]
    )


def test_without_pyav_an_m4a_names_the_extra(
    tmp_path: Path, tone: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_m4a(tmp_path / "tone.m4a", tone(), RATE)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(audio.AudioError, match=r"tone\.m4a: .*pip install 'patchifier\[formats\]'"):
        audio.load(tmp_path / "tone.m4a")


# --- blocks and parts ---


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, noise: Callable) -> dict[str, Path]:
    """Noise of 24 s at 22,050 Hz, longer than two blocks, in exact and in lossy formats."""
    root = tmp_path_factory.mktemp("recordings")
    paths = {suffix: root / f"noise.{suffix}" for suffix in ("wav", "flac", "ogg", "mp3")}
    for path in paths.values():
        soundfile.write(path, noise(24), RATE)
    return paths


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_blocks_joined_are_the_whole_bit_for_bit(
    rate: int, tmp_path: Path, stereo: Callable
) -> None:
    path = tmp_path / "noise.wav"
    soundfile.write(path, stereo(25, rate=rate), rate)
    parts = list(audio.blocks(path))
    assert len(parts) >= 3
    np.testing.assert_array_equal(np.concatenate(parts), audio.load(path))


@pytest.mark.parametrize(("rate", "tolerance"), [(RATE, 0), (44_100, 1e-6)])
def test_block_length_makes_no_difference(
    rate: int,
    tolerance: float,
    tmp_path: Path,
    stereo: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soundfile.write(tmp_path / "noise.wav", stereo(12, rate=rate), rate)
    expected = audio.load(tmp_path / "noise.wav")
    monkeypatch.setattr(decode, "BLOCK_S", 0.37)
    np.testing.assert_allclose(audio.load(tmp_path / "noise.wav"), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@settings(max_examples=20, deadline=None)
@given(bounds=st.lists(st.floats(0, 23.9), min_size=2, max_size=2, unique=True).map(sorted))
def test_part_of_an_exact_format_is_that_part_of_the_whole(
    suffix: str, recordings: dict[str, Path], bounds: list[float]
) -> None:
    start_s, end_s = bounds[0], bounds[1] + 0.01
    whole = audio.load(recordings[suffix])
    part = audio.load(recordings[suffix], start_s=start_s, end_s=end_s)
    np.testing.assert_array_equal(part, whole[round(start_s * RATE) : round(end_s * RATE)])


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
@pytest.mark.parametrize(("start_s", "end_s"), [(0, 3), (1.5, 4.25), (11, 21.7), (22, None)])
def test_part_of_a_lossy_format_lies_within_a_codec_frame(
    suffix: str,
    start_s: float,
    end_s: float | None,
    recordings: dict[str, Path],
) -> None:
    whole = audio.load(recordings[suffix])
    part = audio.load(recordings[suffix], start_s=start_s, end_s=end_s)
    expected = (round(end_s * RATE) if end_s else len(whole)) - round(start_s * RATE)
    assert abs(len(part) - expected) <= CODEC_FRAME
    middle = part[
        CODEC_FRAME : CODEC_FRAME + 8192
    ]  # noise, so that only one place of the whole fits it
    first = round(start_s * RATE)
    around = whole[first : first + 8192 + 2 * CODEC_FRAME]
    errors = [
        float(np.abs(around[shift : shift + 8192] - middle).max())
        for shift in range(2 * CODEC_FRAME + 1)
    ]
    assert min(errors) < 1e-3


def test_part_is_resampled_as_the_whole_is(tmp_path: Path, noise: Callable) -> None:
    soundfile.write(tmp_path / "noise.wav", noise(6, rate=44_100), 44_100)
    whole, part = (
        audio.load(tmp_path / "noise.wav"),
        audio.load(tmp_path / "noise.wav", start_s=2, end_s=5),
    )
    assert len(part) == 3 * RATE
    np.testing.assert_allclose(part[500:-500], whole[2 * RATE : 5 * RATE][500:-500], atol=1e-4)


def test_part_that_ends_beyond_the_end_is_cut_there(recordings: dict[str, Path]) -> None:
    assert len(audio.load(recordings["wav"], start_s=20, end_s=99)) == 4 * RATE


def test_long_file_costs_the_memory_of_a_block(tmp_path: Path, noise: Callable) -> None:
    path, rate = tmp_path / "long.wav", 8_000
    minute = noise(60, rate=rate)
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_U8") as sound:
        for _ in range(30):
            sound.write(minute)
    longest, total = 0, 0
    tracemalloc.start()
    for block in audio.blocks(path):
        longest, total = max(longest, len(block)), total + len(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == pytest.approx(30 * 60 * RATE, abs=2)
    assert longest <= 12 * RATE
    assert peak < 16e6  # all of it would be 159 MB


# --- bad files ---


def cut_in_half(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    container = CONTAINERS[path.suffix[1:]]
    soundfile.write(path, sound, rate, format=container)
    os.truncate(path, path.stat().st_size // 2)


def expect_refusal(path: Path, reason: str, **part: float) -> None:
    with pytest.raises(audio.AudioError, match=reason) as caught:
        audio.load(path, **part)
    assert path.name in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    expect_refusal(tmp_path / "missing.wav", "cannot be read .*No such file")


def test_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "album.wav").mkdir()
    expect_refusal(tmp_path / "album.wav", "cannot be read .*directory")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    expect_refusal(tmp_path / "empty.wav", "is empty")


@pytest.mark.parametrize("has_pyav", [True, False])
def test_text_named_mp3_is_refused(
    has_pyav: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.mp3").write_text("not a song, but a page of notes about one\n" * 200)
    if not has_pyav:
        monkeypatch.setitem(sys.modules, "av", None)
    expect_refusal(tmp_path / "notes.mp3", "not an audio file: it is text")


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_truncated_file_is_refused(suffix: str, tmp_path: Path, noise: Callable) -> None:
    path = tmp_path / f"half.{suffix}"
    cut_in_half(path, noise(20))
    expect_refusal(path, "truncated")


def test_truncated_file_still_gives_a_part_that_is_whole(tmp_path: Path, noise: Callable) -> None:
    soundfile.write(tmp_path / "whole.wav", noise(20), RATE)
    cut_in_half(tmp_path / "half.wav", noise(20))
    part = audio.load(tmp_path / "half.wav", start_s=1, end_s=3)
    np.testing.assert_array_equal(part, audio.load(tmp_path / "whole.wav", start_s=1, end_s=3))


def test_truncated_m4a_is_refused(tmp_path: Path, noise: Callable) -> None:
    path = tmp_path / "half.m4a"
    write_m4a(path, noise(5), RATE)
    os.truncate(path, path.stat().st_size // 2)
    expect_refusal(path, "not an audio file|truncated")


def test_header_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "header.wav", np.zeros(0, np.float32), RATE)
    expect_refusal(tmp_path / "header.wav", "holds no audio")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_numbers_are_refused(
    value: float, tmp_path: Path, tone: Callable
) -> None:
    sound = tone()
    sound[12_345] = value
    soundfile.write(tmp_path / "wrong.wav", sound, RATE, subtype="FLOAT")
    expect_refusal(tmp_path / "wrong.wav", "not numbers")


@pytest.mark.parametrize("sign", [1, -1])
def test_floats_at_the_scale_of_integers_are_refused(
    sign: int, tmp_path: Path, tone: Callable
) -> None:
    soundfile.write(
        tmp_path / "integers.wav",
        sign * np.float32(32_767) * tone(level=1.0).clip(0),
        RATE,
        subtype="FLOAT",
    )
    expect_refusal(
        tmp_path / "integers.wav",
        r"peak at 327\d\d.*, expected floats within about -1 to 1: .*divide .* by 32768",
    )
    soundfile.write(
        tmp_path / "loud.wav", tone(level=50.0), RATE, subtype="FLOAT"
    )  # 34 dB over full scale may have been recorded
    assert np.abs(audio.load(tmp_path / "loud.wav")).max() == pytest.approx(50, rel=0.01)


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_start_beyond_the_end_is_refused(suffix: str, recordings: dict[str, Path]) -> None:
    expect_refusal(recordings[suffix], r"holds no audio after 30 s", start_s=30)


def test_end_before_start_is_refused(recordings: dict[str, Path]) -> None:
    expect_refusal(recordings["wav"], "ends at 2 s, before it starts at 3 s", start_s=3, end_s=2)


@pytest.mark.parametrize(
    "part",
    [
        {"start_s": -1.0},
        {"start_s": float("nan")},
        {"start_s": "1"},
        {"end_s": float("nan")},
        {"end_s": "2"},
        *({"sample_rate": rate} for rate in (0, "22050")),
    ],
)
def test_parts_and_rates_that_are_no_numbers_are_refused(
    part: dict[str, Any], recordings: dict[str, Path]
) -> None:
    name, value = next(iter(part.items()))
    with pytest.raises(RequestError, match=rf"{name}( is)? {value!r}.*expected"):
        audio.load(recordings["wav"], **part)


def test_absurd_rate_in_a_header_is_refused(tmp_path: Path) -> None:
    """A damaged header that says 1 Hz would turn 20 samples into 20 s, and a short file into gigabytes."""
    soundfile.write(tmp_path / "slow.wav", np.zeros(20, np.float32), 1)
    expect_refusal(tmp_path / "slow.wav", "1 Hz")


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg"])
@settings(max_examples=15, deadline=None)
@given(
    damage=st.lists(st.tuples(st.floats(0.05, 0.999), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_damaged_file_gives_audio_or_a_reason(
    suffix: str, recordings: dict[str, Path], damage: list[tuple[float, int]]
) -> None:
    path = recordings[suffix]
    content = bytearray(path.read_bytes()[: 3 * 10**5])
    for place, value in damage:
        content[int(place * len(content))] = value
    wreck = path.with_name(f"wreck.{suffix}")
    wreck.write_bytes(content)
    reason, wave = "", np.zeros(0)
    try:
        wave = audio.load(wreck)
    except audio.AudioError as error:
        reason = str(error)
    assert wreck.name in reason or (len(wave) > 0 and np.isfinite(wave).all())


LOAD_WITHOUT_RIGHTS = """
import os, sys
import av
from patchifier import audio, decode
if os.geteuid() == 0:  # root may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    audio.load(sys.argv[1])
except audio.AudioError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("mode", [0o644, 0o000])
def test_file_without_permission_is_refused(
    mode: int, tone: Callable, child_environment: dict[str, str]
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = folder / "locked.wav"
        soundfile.write(path, tone(), RATE)
        path.chmod(mode)
        command = [sys.executable, "-c", LOAD_WITHOUT_RIGHTS, str(path)]
        done = subprocess.run(
            command, env=child_environment, capture_output=True, text=True, timeout=60
        )
    finally:
        shutil.rmtree(folder)
    if mode:  # the same child reads the same file when it may: the refusal below is about rights and nothing else
        assert done.returncode == 0, done.stderr
    else:
        assert done.stderr.startswith("refused: ")
        assert "locked.wav: cannot be read (Permission denied)" in done.stderr


def test_streamed_wav_of_unknown_length_is_accepted(tmp_path: Path, tone: Callable) -> None:
    path = tmp_path / "streamed.wav"
    soundfile.write(path, tone(), RATE, subtype="PCM_16")
    expected = audio.load(path)
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.load(path), expected)


# --- samples in memory ---


def test_samples_in_memory_equal_the_same_samples_in_a_file(
    tmp_path: Path, stereo: Callable
) -> None:
    sound = stereo(2, rate=44_100)
    soundfile.write(tmp_path / "noise.wav", sound, 44_100, subtype="FLOAT")
    wave = audio.as_waveform(sound.T, 44_100)
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, audio.load(tmp_path / "noise.wav"), atol=1e-5)


def test_samples_at_the_right_rate_are_left_alone(tone: Callable) -> None:
    np.testing.assert_array_equal(audio.as_waveform(tone(), RATE), tone())


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(100, np.float32), None, "needs its sample rate"),
        (np.zeros(100, np.float32), 44, "sample_rate is 44"),
        (np.zeros(100, np.float32), 10**9, "sample_rate is 1000000000"),
        *(
            (np.zeros(100, np.float32), rate, f"sample_rate is {rate!r}, expected a rate in Hz")
            for rate in ("22050", float("nan"), -44_100, 0, True, [44_100])
        ),
        ([[0.1, 0.2], [0.1]], RATE, "samples are a list that is no array"),
        (np.zeros(100, np.int64), RATE, "samples are int64"),
        (np.zeros((32, 100), np.float32), RATE, "at most 24 channels"),
        (np.zeros(100, bool), RATE, "samples are bool"),
        (np.zeros(100, complex), RATE, "samples are complex"),
        (
            np.array([0.1, 32_767.0], np.float32),
            RATE,
            "samples peak at 32767, expected floats within about -1 to 1: divide",
        ),
        (np.array([[0.1, -32_768.0], [0.1, 32_767.0]], np.float32), RATE, "samples peak at 32768"),
        (np.array([0.1, np.nan], np.float32), RATE, "NaN or infinity"),
        (np.array([0.1, -np.inf], np.float32), RATE, "NaN or infinity"),
        (np.zeros((100, 2), np.float32), RATE, "transpose"),
        (np.zeros(0, np.float32), RATE, r"shape \(0,\)"),
        (np.zeros((2, 0), np.float32), RATE, r"shape \(2, 0\)"),
        (np.zeros((2, 2, 100), np.float32), RATE, r"shape \(2, 2, 100\)"),
        (np.float32(0.5), RATE, r"shape \(\)"),
    ],
)
def test_samples_that_make_no_sense_are_refused(samples: Any, rate: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=re.escape(reason) if "[" in reason else reason):
        audio.as_waveform(samples, rate)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32"])
def test_integers_are_scaled_as_in_a_wav_file(kind: str, tone: Callable) -> None:
    middle, scale = audio.FULL_SCALE[kind]
    integers = np.round(tone() * (scale - 1) + middle).astype(kind)
    found = audio.as_waveform(integers, RATE)
    np.testing.assert_allclose(found, tone(), atol=1.5 / scale)
    assert found.dtype == np.float32


def test_tensors_of_any_precision_are_samples(tone: Callable) -> None:
    samples = torch.from_numpy(tone())
    kinds = (samples.clone().requires_grad_(), samples.double(), samples.half(), samples.bfloat16())
    for tensor in kinds:
        np.testing.assert_allclose(audio.as_waveform(tensor, RATE), tone(), atol=4e-3)
    integers = (samples * 32767).round().to(torch.int16)
    np.testing.assert_allclose(audio.as_waveform(integers, RATE), tone(), atol=1e-4)


def test_saved_waveform_is_turned_down_and_not_clipped(tmp_path: Path, tone: Callable) -> None:
    audio.save(tmp_path / "loud.wav", tone(440, level=2.0))
    np.testing.assert_allclose(audio.load(tmp_path / "loud.wav"), tone(440, level=1.0), atol=1e-3)


def test_a_waveform_that_there_is_no_room_for_is_an_error_of_the_system(
    tmp_path: Path, tone: Callable, small_files: Callable
) -> None:
    small_files(1000)
    with pytest.raises(OSError) as caught:
        audio.save(tmp_path / "x.wav", tone())
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "x.wav"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stated", "reported"), [(None, False), (0, True)])
def test_output_of_a_decoder_is_a_note_only_beside_another_one(
    stated, reported, tmp_path, monkeypatch
):
    monkeypatch.setattr(audio.sandbox, "output", lambda: "a complaint")
    path, how = made.wav(tmp_path / "x.wav", 1.0, stated=stated), audio.Decoding()
    assert sum(map(len, audio.blocks(path, how=how))) == 22_050
    assert ("its decoder says: a complaint" in how.notes) == reported
    assert bool(how.notes) == reported


def test_what_a_decoder_prints_in_the_main_process_is_attached_to_its_file(tmp_path, capfd):
    path, how = made.with_hole(tmp_path / "hole.mp3", 4), audio.Decoding()
    assert sum(map(len, audio.blocks(path, how=how))) > 3 * 22_050
    assert any("its decoder says: Note: Illegal Audio-MPEG-Header" in note for note in how.notes)
    (tmp_path / "junk.mp3").write_bytes(b"no audio\0" * 100)
    with pytest.raises(audio.AudioError, match=r"junk.mp3: not an .*Its decoder says: Note: Ill"):
        audio.load(tmp_path / "junk.mp3")
    assert capfd.readouterr().err == ""


def test_python_may_print_while_a_decoder_is_listened_to(capfd):
    said = []
    with open(2, "w", closefd=False) as own, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", own)
        with audio.sandbox.listen(said):
            print("from Python", file=sys.stderr)
            os.write(2, b"from C")
    os.write(2, b", after")
    assert said == ["from C"]
    assert capfd.readouterr().err == "from Python\n, after"


def test_what_a_decoder_says_is_behind_the_reason():
    assert audio.sandbox.with_words("a.mp3: bad.", "x") == "a.mp3: bad. Its decoder says: x"
    assert audio.sandbox.with_words("a.mp3: bad.", "") == "a.mp3: bad."

"""Surround files: the channel of low-frequency effects (LFE) is found and left out."""

from pathlib import Path

import mutagen.flac
import numpy as np
import pytest
import soundfile

from patchifier import audio
from patchifier.channels import MASK
from patchifier.decode import Decoding
from patchifier.excerpts import read_each

av = pytest.importorskip("av")

RATE = 48_000
LFE_HZ, OTHERS_HZ = 60, (400, 500, 600, 700, 800, 900, 1000)


def tones(order: list[str]) -> np.ndarray:
    """Channels (S, C) of two seconds: a loud low tone for "LFE", a quiet one for each other."""
    seconds = np.arange(2 * RATE) / RATE
    others = iter(OTHERS_HZ)
    return np.stack(
        [
            0.8 * np.sin(2 * np.pi * LFE_HZ * seconds)
            if name == "LFE"
            else 0.1 * np.sin(2 * np.pi * next(others) * seconds)
            for name in order
        ],
        axis=1,
    ).astype(np.float32)


def by_sndfile(path: Path, subtype: str, order: list[str]) -> None:
    kind = {".wav": "WAV", ".caf": "CAF", ".flac": "FLAC"}.get(path.suffix, "OGG")
    soundfile.write(path, tones(order), RATE, subtype=subtype, format=kind)


def by_av(path: Path, codec: str, layout: str) -> None:
    """Encode tones with the layout that FFmpeg writes into the file."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=RATE, layout=layout)
        resampler = av.AudioResampler(
            stream.codec_context.format, layout, RATE, stream.codec_context.frame_size or None
        )
        samples = np.ascontiguousarray(tones(names).T)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = RATE
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


def levels(path: Path, *, mix_lfe: bool) -> tuple[float, int]:
    """Amplitude of the low tone in the mix, and how many others are in it."""
    blocks = audio.blocks(path, sample_rate=RATE, how=Decoding(mix_lfe=mix_lfe))
    mono = np.concatenate(list(blocks))[RATE // 2 : RATE // 2 + RATE]
    amplitudes = 2 * np.abs(np.fft.rfft(mono)) / RATE  # a bin is a hertz
    return float(amplitudes[LFE_HZ]), int((amplitudes[list(OTHERS_HZ)] > 0.005).sum())


WAVE = ["FL", "FR", "FC", "LFE", "BL", "BR"]
OGG = ["FL", "FC", "FR", "BL", "BR", "LFE"]
EIGHT = ["FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"]


@pytest.mark.parametrize(
    ("name", "subtype", "order"),
    [
        ("a.wav", "PCM_16", WAVE),
        ("a.flac", "PCM_16", WAVE),
        ("eight.flac", "PCM_16", EIGHT),
        ("a.ogg", "VORBIS", OGG),
        ("a.caf", "ALAC_16", ["FC", "FL", "FR", "BL", "BR", "LFE"]),
    ],
)
def test_the_lfe_of_files_without_a_map_is_where_the_format_has_it(
    tmp_path: Path, name: str, subtype: str, order: list[str]
) -> None:
    by_sndfile(tmp_path / name, subtype, order)
    low, others = levels(tmp_path / name, mix_lfe=False)
    assert low < 0.002
    assert others == len(order) - 1
    assert levels(tmp_path / name, mix_lfe=True)[0] == pytest.approx(0.8 / len(order), rel=0.25)


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.wav", "pcm_s16le", "5.1"),
        ("three.wav", "pcm_s16le", "2.1"),
        ("a.w64", "pcm_s24le", "5.1"),
        ("a.flac", "flac", "5.1"),
        ("a.opus", "libopus", "5.1"),
        ("a.m4a", "aac", "5.1"),
        ("a.ac3", "ac3", "5.1"),
    ],
)
def test_the_lfe_of_files_by_ffmpeg_is_left_out(
    tmp_path: Path, name: str, codec: str, layout: str
) -> None:
    container = tmp_path / name if name != "a.ac3" else tmp_path / "a.mka"
    by_av(container, codec, layout)
    count = av.AudioLayout(layout).nb_channels
    low, others = levels(container, mix_lfe=False)
    assert low < 0.002
    assert others == count - 1
    assert levels(container, mix_lfe=True)[0] == pytest.approx(0.8 / count, rel=0.05)


@pytest.mark.parametrize(
    "order", [["FL", "FR", "FC"], ["FL", "FR", "BL", "BR"], [*WAVE[:3], "BL", "BR"]]
)
def test_other_numbers_of_channels_have_no_lfe(tmp_path: Path, order: list[str]) -> None:
    by_sndfile(tmp_path / "a.flac", "PCM_16", order)
    assert levels(tmp_path / "a.flac", mix_lfe=False)[1] == len(order)


@pytest.mark.parametrize(("mask", "left_out"), [("0x3F", 3), ("0x137", None), ("0x70F", 3)])
def test_a_flac_file_says_which_channels_it_has(
    tmp_path: Path, mask: str, left_out: int | None
) -> None:
    path = tmp_path / "a.flac"
    count = int(mask, 16).bit_count()
    names = ["LFE" if place == left_out else "other" for place in range(count)]
    by_sndfile(path, "PCM_16", names)
    file = mutagen.flac.FLAC(path)
    file[MASK] = mask
    file.save()
    low, others = levels(path, mix_lfe=False)
    assert low < 0.002
    assert others == count - (left_out is not None)


def test_a_file_that_is_an_lfe_alone_is_read(tmp_path: Path) -> None:
    by_av(tmp_path / "a.mov", "pcm_s16le", "1 channels (LFE)")
    assert levels(tmp_path / "a.mov", mix_lfe=False)[0] == pytest.approx(0.8, rel=0.05)


def test_excerpts_that_share_a_pass_leave_it_out_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    by_sndfile(path, "VORBIS", OGG)
    spans = [(str(path), 0.0, 1.0), (str(path), 1.0, 2.0)]
    for mix_lfe in (False, True):

        def read(number: int, source: object, mix_lfe: bool = mix_lfe) -> float:
            how = Decoding(mix_lfe=mix_lfe)
            parts = audio.blocks(
                path, sample_rate=RATE, start_s=spans[number][1], end_s=spans[number][2],
                how=how, source=source,
            )  # fmt: skip
            return float(np.abs(np.fft.rfft(np.concatenate(list(parts))))[LFE_HZ])

        low = read_each(spans, read, mix_lfe=mix_lfe)
        assert [amplitude > 0.05 * RATE for amplitude in low] == [mix_lfe] * 2

"""Excerpts of one file in one pass: the samples and the errors of each alone, and one decoding."""

import numpy as np
import pytest
import soundfile

import patchifier
from patchifier import audio, decode, excerpts
from patchifier.cache import Cache, prepare
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.library.worker import Cut, embed_clips
from tests.audio_files import muxed

RATE = 22_050
SPANS = [
    (12.0, 15.5),
    (0.0, 3.0),
    (2.5, 14.0),
    (12.0, 13.0),
    (31.7, None),
    (20.0, 21.3),
    (7.0, 7.001),
]


def write(path, seconds=40, rate=44_100):
    rng = np.random.default_rng(0)
    sound = (
        0.1 * rng.standard_normal((seconds * rate, 2))
        + 0.2 * np.sin(np.arange(seconds * rate) / 50)[:, None]
    )
    soundfile.write(path, sound.astype(np.float32), rate)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("excerpts")


@pytest.fixture(scope="module")
def files(folder):
    ogg, mp3, wav = (write(folder / f"x.{kind}") for kind in ("ogg", "mp3", "wav"))
    return {
        "ogg": ogg,
        "mp3": mp3,
        "wav": wav,
        "m4a": muxed(folder / "x.m4a", 40, codec="aac", format="mp4"),
    }


def alone(path, span):
    try:
        how = audio.Decoding()
        return np.concatenate(
            list(audio.blocks(path, start_s=span[0], end_s=span[1], how=how))
        ), how
    except RequestError as error:
        return str(error), None


def together(path, spans):
    def read(number, source):
        try:
            start_s, end_s = spans[number]
            how = audio.Decoding()
            blocks = audio.blocks(path, start_s=start_s, end_s=end_s, how=how, source=source)
            return np.concatenate(list(blocks)), how
        except RequestError as error:
            return str(error), None

    return excerpts.read_each([(str(path), *span) for span in spans], read)


def same(path, spans):
    for span, (found, how) in zip(spans, together(path, spans), strict=True):
        expected, how_alone = alone(path, span)
        if isinstance(expected, str):
            assert found == expected
        else:
            np.testing.assert_array_equal(found, expected)
            assert (how.decoder, how.length_s) == (how_alone.decoder, how_alone.length_s)


@pytest.mark.parametrize("kind", ["ogg", "mp3", "wav", "m4a"])
def test_samples_are_those_of_each_excerpt_alone(files, kind):
    same(files[kind], SPANS)


def test_a_file_is_decoded_once(files, monkeypatch):
    decoded = []
    blocks = decode.mono_blocks

    def counted(*arguments):
        for samples, rate in blocks(*arguments):
            decoded.append(len(samples) / rate)
            yield samples, rate

    monkeypatch.setattr(excerpts, "mono_blocks", counted)
    together(files["ogg"], SPANS)
    assert sum(decoded) == pytest.approx(40, abs=0.1)
    decoded.clear()
    together(files["wav"], SPANS)  # its decoder jumps to a sample
    assert not decoded


def test_errors_are_those_of_each_excerpt_alone(files, folder):
    cut = folder / "cut.mp3"
    cut.write_bytes(files["mp3"].read_bytes()[: files["mp3"].stat().st_size // 2])
    same(cut, SPANS)
    noise = folder / "noise.ogg"
    noise.write_bytes(b"OggS" + bytes(1000))
    same(noise, SPANS)
    same(files["ogg"], [(0.0, 5.0), (100.0, 110.0), (3.0, 2.0)])
    for wrong in ((-1.0, 2.0), (float("nan"), 2.0), (1.0, float("nan"))):
        same(files["mp3"], [wrong, (1.0, 2.0), (3.0, 4.0)])


def test_an_excerpt_that_fails_while_it_is_read_costs_no_other(files):
    def read(number, source):
        for block in audio.blocks(
            files["ogg"], start_s=number * 5.0, end_s=number * 5.0 + 8, source=source
        ):
            if number == 1:
                return None
            total = block
        return total

    found = excerpts.read_each([(str(files["ogg"]), k * 5.0, k * 5.0 + 8) for k in range(4)], read)
    assert found[1] is None
    for number in (0, 2, 3):
        expected = list(audio.blocks(files["ogg"], start_s=number * 5.0, end_s=number * 5.0 + 8))
        np.testing.assert_array_equal(found[number][-100:], expected[-1][-100:])


def test_results_keep_the_order_of_files_and_excerpts(files):
    asked = [
        (str(files["mp3"]), 9.0, 10.0),
        (str(files["ogg"]), 1.0, 2.0),
        (str(files["mp3"]), 0.0, 1.0),
    ]
    assert excerpts.read_each(asked, lambda number, source: number) == [0, 1, 2]


def clips(path):
    return tuple(
        Clip(f"{n}", str(path), start_s, end_s) for n, (start_s, end_s) in enumerate(SPANS)
    )


def test_a_cache_of_excerpts_is_that_of_each_alone(files, folder):
    config = SpectrogramConfig()
    whole = prepare(Dataset("x", clips(files["mp3"])), folder / "cache", config=config, workers=1)
    assert whole.clips == len(SPANS)
    cache = Cache(folder / "cache")
    for number, clip in enumerate(clips(files["mp3"])):
        single = folder / f"cache-{number}"
        prepare(Dataset("x", (clip,)), single, config=config, workers=1)
        np.testing.assert_array_equal(Cache(single).log_mel(0), cache.log_mel(number))
        assert Cache(single).keys[0] == cache.keys[number]


def test_rows_of_excerpts_are_those_of_each_alone(files, paper):
    found = embed_clips(paper, Cut(), clips(files["mp3"]))
    for clip, rows in zip(clips(files["mp3"]), found, strict=True):
        (expected,) = embed_clips(paper, Cut(), [clip])
        np.testing.assert_allclose(rows.vectors, expected.vectors, atol=1e-5)
        assert rows.spans_s == expected.spans_s


@pytest.fixture(scope="module")
def paper():
    return patchifier.load("patchifier-paper")

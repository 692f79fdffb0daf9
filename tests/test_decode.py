"""No audio is lost: what one decoder leaves out another one decodes, or the file is named."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from patchifier import audio, containers
from patchifier.config import RequestError
from tests import audio_files as made

RATE = audio.SAMPLE_RATE
FRAME_S = 1152 / made.RATE


def length_s(path: Path, **part: float) -> float:
    return len(audio.load(path, **part)) / RATE


def decoded(path: Path) -> audio.Decoding:
    how = audio.Decoding()
    given = sum(map(len, audio.blocks(path, how=how)))
    assert how.length_s == given / RATE
    return how


@pytest.fixture(params=[True, False], ids=["pyav", "no pyav"])
def any_pyav(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyAV installed, and without."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "av", None)


@pytest.fixture
def no_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


# --- lengths that headers do not state, or state wrongly ---


def test_mp3_of_variable_rate_without_a_tag_is_read_to_its_end(
    any_pyav: None, tmp_path: Path
) -> None:
    path = made.mp3(tmp_path / "a.mp3", 6.03, tag=False)
    assert soundfile.info(path).duration < 5  # the decoder's guess
    assert length_s(path) == pytest.approx(6.03, abs=3 * FRAME_S)
    assert length_s(path, start_s=5.0) == pytest.approx(1.03, abs=3 * FRAME_S)
    assert length_s(path, start_s=5.0, end_s=5.5) == 0.5


def test_mp3_whose_first_frames_have_a_high_rate_is_read_to_its_end(tmp_path: Path) -> None:
    loud = {"bitrate_mode": "CONSTANT", "compression_level": 0.0}
    made.write(tmp_path / "loud.mp3", made.music(0.3), format="MP3", **loud)
    path = made.chained(
        tmp_path / "a.mp3",
        [made.untagged(tmp_path / "loud.mp3"), made.mp3(tmp_path / "b.mp3", 6.0, tag=False)],
    )
    assert soundfile.info(path).duration < 0.8 * 6.3
    assert length_s(path) == pytest.approx(6.3, abs=8 * FRAME_S)


def test_mp3_whose_first_frames_have_a_low_rate_is_no_truncated_one(tmp_path: Path) -> None:
    """The decoder guesses more than there is."""
    low = {"bitrate_mode": "CONSTANT", "compression_level": 0.9}
    made.write(tmp_path / "low.mp3", made.music(0.3), format="MP3", **low)
    high = made.mp3(tmp_path / "high.mp3", 6.0, variable=False, tag=False)
    path = made.chained(tmp_path / "a.mp3", [made.untagged(tmp_path / "low.mp3"), high])
    assert soundfile.info(path).duration > 1.2 * 6.3
    assert length_s(path) == pytest.approx(6.3, abs=8 * FRAME_S)


@pytest.mark.parametrize("junk", [bytes(5000), np.random.default_rng(0).bytes(5000)])
def test_junk_between_a_tag_and_the_first_frame_is_passed_over(junk: bytes, tmp_path: Path) -> None:
    path = made.mp3(tmp_path / "a.mp3", 3.0)
    path.write_bytes(made.id3() + junk + path.read_bytes())
    assert length_s(path) == pytest.approx(3.0, abs=4 * FRAME_S)


def test_flac_that_states_no_length_is_read_to_its_end(any_pyav: None, tmp_path: Path) -> None:
    path = made.flac(tmp_path / "a.flac", 3.7, stated=0)
    np.testing.assert_array_equal(
        audio.load(path), audio.load(made.flac(tmp_path / "whole.flac", 3.7))
    )


@pytest.mark.parametrize("stated", [0, 1000])
def test_wav_that_states_too_little_is_read_to_the_end_of_the_file(
    stated: int, any_pyav: None, tmp_path: Path
) -> None:
    path = made.wav(tmp_path / "a.wav", 3.0, stated=stated)
    assert decoded(path).notes == [
        f"its data chunk states {stated} bytes, it has 264600: read to the end"
    ]
    np.testing.assert_array_equal(
        audio.load(path), audio.load(made.wav(tmp_path / "whole.wav", 3.0))
    )


def test_wav_without_samples_takes_no_chunk_for_them(tmp_path: Path) -> None:
    path = made.wav(tmp_path / "a.wav", 0.0, behind=b"LIST\x04\0\0\0INFO")
    with pytest.raises(audio.AudioError, match="holds no audio"):
        audio.load(path)


def test_opus_without_an_end_flag_gives_what_is_there(tmp_path: Path) -> None:
    path = made.without_end_flag(made.opus(tmp_path / "a.opus", 3.7))
    assert length_s(path) == pytest.approx(3.7, abs=0.011)


# --- Ogg of several links ---


def test_links_of_an_ogg_are_read_one_after_the_other(any_pyav: None, tmp_path: Path) -> None:
    links = [
        made.vorbis(tmp_path / "a.ogg", 1.5, seed=1),
        made.vorbis(tmp_path / "b.ogg", 2.0, rate=22_050),
        made.opus(tmp_path / "c.ogg", 1.0),
    ]
    path = made.chained(tmp_path / "chain.ogg", links)
    whole = np.concatenate([audio.load(link) for link in links])
    np.testing.assert_array_equal(audio.load(path), whole)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(0.0, 1.0), (0.5, 2.5), (1.6, 3.0), (2.0, None), (3.2, 3.9)]
)
def test_part_of_a_chain_is_that_part_of_the_whole(
    start_s: float, end_s: float | None, tmp_path: Path
) -> None:
    links = [made.vorbis(tmp_path / f"{n}.ogg", 2.0, seed=n, rate=RATE) for n in range(2)]
    path = made.chained(tmp_path / "chain.ogg", links)
    whole = audio.load(path)
    assert len(whole) == 4 * RATE
    last = None if end_s is None else round(end_s * RATE)
    np.testing.assert_array_equal(
        audio.load(path, start_s=start_s, end_s=end_s), whole[round(start_s * RATE) : last]
    )


# --- a decoder that stops ---


def test_where_libsndfile_stops_pyav_goes_on(tmp_path: Path) -> None:
    path = made.with_hole(tmp_path / "a.mp3", 12.0)
    how = decoded(path)
    assert how.decoder == "libsndfile + PyAV"
    assert how.length_s == pytest.approx(12.0, abs=4 * FRAME_S)
    assert "libsndfile stops after" in how.notes[0]


def test_without_pyav_the_extra_is_named_and_no_part_is_passed_off_as_the_whole(
    no_pyav: None, tmp_path: Path
) -> None:
    path = made.with_hole(tmp_path / "a.mp3", 12.0)
    with pytest.raises(
        audio.AudioError,
        match=r"a\.mp3: only \d\.\d of its 12\.\d s can be read by libsndfile\. .*\[formats\]",
    ):
        audio.load(path)


def test_pages_that_are_missing_are_told(any_pyav: None, tmp_path: Path) -> None:
    content = made.vorbis(tmp_path / "a.ogg", 12.0).read_bytes()
    pages = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    assert len(pages) > 6
    (tmp_path / "b.ogg").write_bytes(content[: pages[4]] + content[pages[-2] :])
    with pytest.raises(
        audio.AudioError, match=r"b\.ogg: (damaged, it holds|only .* of its) 12\.0 s"
    ):
        audio.load(tmp_path / "b.ogg")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.83])
@pytest.mark.parametrize("make", [made.mp3, made.vorbis, made.opus, made.flac, made.wav])
def test_file_that_is_cut_off_is_told(make: made.Maker, share: float, tmp_path: Path) -> None:
    path = made.cut(make(tmp_path / "cut", 6.0), share)
    with pytest.raises(audio.AudioError, match="cut: truncated, ends after"):
        audio.load(path)


# --- what is no music ---


def test_list_of_files_named_m4a_is_refused(tmp_path: Path) -> None:
    made.wav(tmp_path / "neighbour.wav", 1.0)
    (tmp_path / "song.m4a").write_text("ffconcat version 1.0\nfile neighbour.wav\n")
    with pytest.raises(audio.AudioError, match=r"song\.m4a: not an audio file: it is text"):
        audio.load(tmp_path / "song.m4a")


def test_format_of_games_named_m4a_is_refused(tmp_path: Path) -> None:
    path = made.muxed(tmp_path / "song.m4a", 1.0, codec="adpcm_adx", format="adx")
    with pytest.raises(audio.AudioError, match=r"song\.m4a: not an audio file"):
        audio.load(path)


def test_codec_that_no_music_has_is_refused(tmp_path: Path) -> None:
    path = made.muxed(tmp_path / "song.wav", 1.0, codec="g722", format="wav", rate=16_000)
    with pytest.raises(audio.AudioError, match=r"song\.wav: its codec is g722"):
        audio.load(path)


def test_no_decoder_of_pictures_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    path = made.film(tmp_path / "song.mov", 2.0, codec="magicyuv")
    formats, open_av = [], av.open

    def kept(*given, **options):
        container = open_av(*given, **options)
        formats.append(container.streams.video[0].codec_context.pix_fmt)
        return container

    kept(str(path)).close()
    monkeypatch.setattr(av, "open", kept)
    assert length_s(path) == pytest.approx(2.0, abs=1e-3)
    assert formats == ["gbrp", None]  # the format of pictures is known once their decoder ran


def test_whatever_is_named_flac_costs_that_file_alone(any_pyav: None, tmp_path: Path) -> None:
    for junk in (bytes(5000), b"<html>" * 900, b"\x7fELF" + bytes(5000), b"PK\x03\x04" * 1000):
        (tmp_path / "song.flac").write_bytes(junk)
        with pytest.raises(audio.AudioError, match=r"song\.flac: "):
            audio.load(tmp_path / "song.flac")


@pytest.mark.parametrize(
    ("codec", "format", "layout", "mixed"),
    [  # all channels but the LFE; FFmpeg reads sixteen of wavpack as 9.1.6
        ("aac", "mp4", "7.1", 7),
        ("pcm_f32le", "matroska", "7.1", 7),
        ("wavpack", "wv", "hexadecagonal", 15),
    ],
)
def test_eight_channels_and_more_are_read(
    codec: str, format: str, layout: str, mixed: int, tmp_path: Path
) -> None:
    path = made.muxed(tmp_path / "song.mka", 1.0, codec=codec, format=format, layout=layout)
    one = made.muxed(tmp_path / "mono.mka", 1.0, codec=codec, format=format)
    assert len(audio.load(path)) == pytest.approx(audio.SAMPLE_RATE, rel=0.05)
    assert np.std(audio.load(path)) == pytest.approx(np.std(audio.load(one)) / mixed, rel=0.02)


def test_a_rate_that_no_number_holds_costs_that_file_alone(tmp_path: Path) -> None:
    path = made.aiff(tmp_path / "song.aiff", 1.0, stated=0)
    content = bytearray(path.read_bytes())
    rate = content.index(b"COMM") + 16
    for exponent in (b"\x7f\xff", b"\x00\x01", b"\x00\x00"):
        content[rate : rate + 2] = exponent
        path.write_bytes(content)
        with pytest.raises(audio.AudioError, match=r"song\.aiff: "):
            audio.load(path)


def test_a_tag_before_a_format_that_libsndfile_alone_reads_is_left_out(tmp_path: Path) -> None:
    path = made.write(tmp_path / "song.svx", made.music(1.0), format="SVX", subtype="PCM_16")
    path.write_bytes(made.id3() + path.read_bytes())
    assert len(audio.load(path)) == audio.SAMPLE_RATE  # libsndfile itself hangs on it


def test_a_file_named_raw_is_judged_by_its_content(tmp_path: Path) -> None:
    made.wav(tmp_path / "song.wav", 1.0).rename(tmp_path / "song.RAW")
    assert len(audio.load(tmp_path / "song.RAW")) == audio.SAMPLE_RATE
    (tmp_path / "song.raw").write_bytes(bytes(5000))
    with pytest.raises(audio.AudioError, match=r"song\.raw: not an audio file"):
        audio.load(tmp_path / "song.raw")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "song.wav")
    with pytest.raises(audio.AudioError, match=r"song\.wav: is a pipe or a device"):
        audio.load(tmp_path / "song.wav")


# --- the limit on length ---


def test_longer_file_than_the_limit_is_refused_and_its_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.wav(tmp_path / "a.wav", 4.0)
    monkeypatch.setenv("PATCHIFIER_MAX_LENGTH_H", str(3 / 3600))
    with pytest.raises(audio.AudioError, match=r"a\.wav: holds .*PATCHIFIER_MAX_LENGTH_H"):
        audio.load(path)
    assert length_s(path, start_s=1.5, end_s=3.5) == 2.0


def test_length_that_cannot_be_counted_is_limited_while_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.muxed(tmp_path / "a.m4a", 4.0, codec="aac", format="mp4")
    monkeypatch.setenv("PATCHIFIER_MAX_LENGTH_H", str(3 / 3600))
    with pytest.raises(audio.AudioError, match="PATCHIFIER_MAX_LENGTH_H"):
        audio.load(path)


@pytest.mark.parametrize("value", ["twelve", "0", "-1", "nan"])
def test_limit_that_is_no_number_is_refused(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHIFIER_MAX_LENGTH_H", value)
    with pytest.raises(
        RequestError, match=r"PATCHIFIER_MAX_LENGTH_H is .*expected a number above 0"
    ):
        audio.load(made.wav(tmp_path / "a.wav", 1.0))


@pytest.mark.parametrize(
    ("factor", "noted"), [(-1.0, "dB quieter"), (-0.95, "32 dB quieter"), (1.0, ""), (0.0, "")]
)
def test_channels_that_cancel_each_other_out_are_noted(
    factor: float, noted: str, tmp_path: Path
) -> None:
    left = made.music(2.0, rate=44_100, seed=0).astype(np.float32) * 0.5
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([left, factor * left], axis=1), 44_100)
    notes = decoded(path).notes
    assert [noted in note for note in notes] == ([True] if noted else [])


@pytest.mark.parametrize(("level_db", "noted"), [(-80.0, True), (-60.0, False)])
def test_a_silent_file_is_noted(level_db: float, noted: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.full(44_100, 10 ** (level_db / 20)), 44_100, subtype="PCM_24")
    assert [note.startswith("it is silent") for note in decoded(path).notes] == [True] * noted


@pytest.mark.parametrize(
    "content",
    [b"not a song\n" * 1000, "\ufeffein \u00e4rmliches Lied\r\n".encode() * 1000, b"\t#EXTM3U"],
)
def test_a_text_that_is_named_like_a_song_is_said_to_be_text(
    content: bytes, any_pyav: None, tmp_path: Path
) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(content)
    with pytest.raises(RequestError) as refused:
        audio.load(path)
    assert str(refused.value) == f"{path}: not an audio file: it is text."


@pytest.mark.parametrize("content", [bytes(5000), b"\xe9t\xe9 " * 900, b"text\0" * 900])
def test_what_is_no_text_is_not_said_to_be_text(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="not an audio file"):
        audio.load(path)


# --- an mp3 that is cut off ---


def test_mp3_without_a_tag_that_is_cut_off_is_noted(any_pyav: None, tmp_path: Path) -> None:
    path = made.cut(made.mp3(tmp_path / "a.mp3", 6.0, tag=False), 0.5)
    assert decoded(path).notes == [containers.mpeg.INCOMPLETE]


def test_an_excerpt_that_does_not_reach_the_cut_is_not_noted(tmp_path: Path) -> None:
    path, how = made.cut(made.mp3(tmp_path / "a.mp3", 6.0, tag=False), 0.5), audio.Decoding()
    list(audio.blocks(path, end_s=1.0, how=how))
    assert how.notes == []


def test_ogg_of_which_libsndfile_offers_a_part_is_read_with_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = made.vorbis(tmp_path / "a.ogg", 3.0)
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda sound: made.RATE))
    assert decoded(path).notes == ["libsndfile reads 1.0 of 3.0 s, PyAV reads all of it"]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(audio.AudioError) as refused:
        audio.load(path)
    assert str(refused.value) == (
        f"{path}: only 1.0 of its 3.0 s can be read by libsndfile. To read it: "
        "pip install 'patchifier[formats]', in a clone '.[formats]'."
    )

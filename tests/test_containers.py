"""How much audio a file holds by its frames, pages and chunks, whatever its header states."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier import containers
from tests import audio_files as made

FRAME_S = 1152 / made.RATE


def lengths(path: Path) -> list[float | None]:
    return [stream.length_s for stream in containers.examine(path)]


def decoded_s(path: Path, **options: object) -> float:
    sound, rate = soundfile.read(path, **options)
    return len(sound) / rate


# --- mp3 ---


def test_frames_of_a_variable_rate_are_counted_without_a_tag(tmp_path: Path) -> None:
    path = made.mp3(tmp_path / "a.mp3", 6.03, tag=False)
    assert decoded_s(path) < 5  # the decoder takes its length from the rate of the first frames
    assert lengths(path) == [pytest.approx(6.03, abs=3 * FRAME_S)]


def test_delay_and_padding_in_the_tag_are_left_out(tmp_path: Path) -> None:
    assert lengths(made.mp3(tmp_path / "a.mp3", 6.03)) == [pytest.approx(6.03, abs=1e-6)]


@pytest.mark.parametrize("before", [b"", made.id3(), made.id3() + made.id3(300)])
@pytest.mark.parametrize("junk", [b"", bytes(5000), np.random.default_rng(0).bytes(5000)])
@pytest.mark.parametrize("behind", [b"", made.ID3V1, made.APE, made.APE + made.ID3V1])
def test_tags_and_junk_around_the_frames_change_no_length(
    before: bytes, junk: bytes, behind: bytes, tmp_path: Path
) -> None:
    path = made.mp3(tmp_path / "a.mp3", 3.0)
    path.write_bytes(before + junk + path.read_bytes() + behind)
    assert lengths(path) == [pytest.approx(3.0, abs=1e-6)]


def test_frames_behind_a_hole_are_counted(tmp_path: Path) -> None:
    path = made.with_hole(tmp_path / "a.mp3", 6.0)
    assert lengths(path) == [pytest.approx(6.0, abs=4 * FRAME_S)]


def test_two_files_in_one_are_counted_to_the_end(tmp_path: Path) -> None:
    first, second = made.mp3(tmp_path / "a.mp3", 2.0), made.mp3(tmp_path / "b.mp3", 3.0)
    path = made.chained(tmp_path / "c.mp3", [first, second])
    (stream,) = containers.examine(path)
    assert stream.length_s == pytest.approx(5.0, abs=6 * FRAME_S)
    assert stream.head
    assert "states" in stream.note


@pytest.mark.parametrize("share", [0.25, 0.5, 0.83])
def test_frame_that_the_end_cuts_is_not_counted(share: float, tmp_path: Path) -> None:
    path = made.cut(made.mp3(tmp_path / "a.mp3", 6.0, variable=False, tag=False), share)
    frames = path.stat().st_size * FRAME_S / (144 * made.kbit(path.read_bytes()) * 1000 / made.RATE)
    assert lengths(path) == [pytest.approx(frames, abs=FRAME_S)]


def test_tag_states_what_a_cut_file_has_lost(tmp_path: Path) -> None:
    (stream,) = containers.examine(made.cut(made.mp3(tmp_path / "a.mp3", 6.0), 0.5))
    assert stream.stated_s == pytest.approx(6.0, abs=3 * FRAME_S)
    assert stream.length_s < 4.5


@pytest.mark.parametrize("behind", [b"", made.ID3V1, made.APE, made.APE + made.ID3V1, bytes(100)])
@pytest.mark.parametrize("kept", [4, 64, 200])
def test_a_last_frame_that_is_incomplete_is_noted(kept: int, behind: bytes, tmp_path: Path) -> None:
    path = made.mp3(tmp_path / "a.mp3", 3.0, variable=False, tag=False)
    content, frame = path.read_bytes(), 144 * made.kbit(path.read_bytes()) * 1000 // made.RATE
    assert frame > 300
    last = content.rindex(content[:2])
    for whole, note in ((content, ""), (content[: last + kept], containers.mpeg.INCOMPLETE)):
        path.write_bytes(whole + behind)
        assert [stream.end_note for stream in containers.examine(path)] == [note]


def test_an_incomplete_frame_behind_all_that_the_tag_states_is_none_that_was_cut(
    tmp_path: Path,
) -> None:
    path = made.mp3(tmp_path / "a.mp3", 3.0)
    content = path.read_bytes()
    path.write_bytes(content + content[content.rindex(content[:2]) :][:64])
    assert [stream.end_note for stream in containers.examine(path)] == [""]


def test_pieces_of_reading_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.mp3(tmp_path / "a.mp3", 3.0, tag=False)
    content = path.read_bytes()
    path.write_bytes(content[:20_000] + bytes(7000) + content[20_000:])
    whole = containers.examine(path)
    monkeypatch.setattr(containers.mpeg, "CHUNK", 30_000)
    assert containers.examine(path) == whole


@pytest.mark.parametrize("codec", ["mp2"])
def test_frames_of_layer_two_are_counted(codec: str, tmp_path: Path) -> None:
    path = made.muxed(tmp_path / "a.mp2", 3.0, codec=codec, format="mp2")
    assert lengths(path) == [pytest.approx(3.0, abs=2 * FRAME_S)]


# --- Ogg ---


@pytest.mark.parametrize("make", [made.vorbis, made.opus])
def test_granule_positions_give_the_length(make: made.Maker, tmp_path: Path) -> None:
    assert lengths(make(tmp_path / "a.ogg", 3.7)) == [pytest.approx(3.7, abs=1e-4)]


def test_flac_in_ogg_is_counted(tmp_path: Path) -> None:
    path = made.muxed(tmp_path / "a.oga", 3.0, codec="flac", format="ogg")
    assert lengths(path) == [pytest.approx(3.0, abs=0.11)]


def test_each_link_of_a_chain_is_a_stream(tmp_path: Path) -> None:
    links = [
        made.vorbis(tmp_path / "a.ogg", 1.5, seed=1),
        made.vorbis(tmp_path / "b.ogg", 2.0, rate=22_050),
        made.opus(tmp_path / "c.ogg", 1.0),
    ]
    streams = containers.examine(made.chained(tmp_path / "chain.ogg", links))
    assert [stream.length_s for stream in streams] == pytest.approx([1.5, 2.0, 1.0], abs=1e-4)
    assert [stream.end - stream.first for stream in streams] == [
        link.stat().st_size for link in links
    ]


def test_stream_without_an_end_flag_holds_what_is_there(tmp_path: Path) -> None:
    path = made.without_end_flag(made.opus(tmp_path / "a.opus", 3.7))
    (stream,) = containers.examine(path)
    assert stream.length_s == pytest.approx(3.7, abs=1e-4)
    assert not stream.cut


def test_negative_granule_position_is_no_length(tmp_path: Path) -> None:
    path = made.with_negative_granule(made.vorbis(tmp_path / "a.ogg", 30.0))
    assert lengths(path) == [pytest.approx(30.0, abs=1e-4)]
    assert decoded_s(path) == pytest.approx(30.0, abs=1e-4)


def test_stream_that_was_recorded_from_its_middle_on_begins_there(tmp_path: Path) -> None:
    content = made.opus(tmp_path / "a.opus", 6.0).read_bytes()
    pages = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    (tmp_path / "late.opus").write_bytes(content[: pages[2]] + content[pages[4] :])
    lost_s = int.from_bytes(content[pages[3] + 6 : pages[3] + 14], "little") / 48_000
    assert lost_s > 1
    assert lengths(tmp_path / "late.opus") == [pytest.approx(6.0 - lost_s, abs=0.02)]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_page_that_the_end_cuts_is_told(share: float, tmp_path: Path) -> None:
    path = made.cut(made.vorbis(tmp_path / "a.ogg", 6.0), share)
    (stream,) = containers.examine(path)
    assert stream.cut
    assert stream.length_s == pytest.approx(decoded_s(path), abs=stream.tolerance_s)


# --- FLAC, wav, AIFF ---


@pytest.mark.parametrize("stated", [0, 44_100, None])
def test_flac_is_as_long_as_its_last_frame_says(stated: int | None, tmp_path: Path) -> None:
    path = made.flac(tmp_path / "a.flac", 3.7, stated=stated)
    (stream,) = containers.examine(path)
    assert stream.length_s == pytest.approx(3.7, abs=1e-6)
    assert bool(stream.head) == (stated is not None)


def test_flac_that_is_cut_off_states_more_than_it_holds(tmp_path: Path) -> None:
    (stream,) = containers.examine(made.cut(made.flac(tmp_path / "a.flac", 6.0), 0.5))
    assert stream.stated_s == 6.0
    assert stream.length_s < 4.5


@pytest.mark.parametrize("stated", [0, 1000, 2**31 - 1, 2**32 - 1])
def test_wav_holds_its_samples_to_the_end_of_the_file(stated: int, tmp_path: Path) -> None:
    assert lengths(made.wav(tmp_path / "a.wav", 3.0, stated=stated)) == [3.0]


@pytest.mark.parametrize(
    "behind", [b"LIST\x04\0\0\0INFO", b"id3 \x0a\0\0\0" + bytes(10), made.id3(), made.ID3V1]
)
def test_chunks_and_tags_behind_the_samples_are_no_samples(behind: bytes, tmp_path: Path) -> None:
    assert lengths(made.wav(tmp_path / "a.wav", 1.0, behind=behind)) == [1.0]
    assert lengths(made.wav(tmp_path / "b.wav", 0.0, stated=0, behind=behind)) == [0.0]


def test_an_aiff_that_ends_inside_the_head_of_its_samples_holds_none(tmp_path: Path) -> None:
    path = made.aiff(tmp_path / "a.aiff", 3.0, stated=8)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"SSND") + 12])
    (stream,) = containers.examine(path)
    assert (stream.first, stream.end, stream.length_s) == (len(path.read_bytes()),) * 2 + (0,)


@pytest.mark.parametrize("stated", [8, 1000])
def test_aiff_holds_its_samples_to_the_end_of_the_file(stated: int, tmp_path: Path) -> None:
    path = made.aiff(tmp_path / "a.aiff", 3.0, stated=stated)
    assert lengths(path) == [pytest.approx(3.0, abs=1e-4)]


# --- any file ---


def test_corrected_header_makes_a_decoder_read_all(tmp_path: Path) -> None:
    """Each file states too little; the view of its stream states what it holds."""
    paths = [
        made.mp3(tmp_path / "a.mp3", 6.0, tag=False),
        made.flac(tmp_path / "a.flac", 3.0, stated=0),
        made.wav(tmp_path / "a.wav", 3.0, stated=0),
        made.aiff(tmp_path / "a.aiff", 3.0, stated=8),
    ]
    for path in paths:
        (stream,) = containers.examine(path)
        with soundfile.SoundFile(containers.View(path, stream)) as sound:
            read_s = len(sound.read()) / sound.samplerate
        assert read_s == pytest.approx(stream.length_s, abs=stream.tolerance_s + 1e-4), path.name


def test_containers_that_are_not_counted_have_no_stream(tmp_path: Path) -> None:
    (tmp_path / "notes.mp3").write_text("not a song, but a page of notes about one\n" * 200)
    path = made.muxed(tmp_path / "a.m4a", 1.0, codec="aac", format="mp4")
    assert containers.examine(tmp_path / "notes.mp3") == ()
    assert containers.examine(path) == ()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("healthy")
    makers = [made.mp3, made.vorbis, made.opus, made.flac, made.wav]
    return [make(root / str(number), 1.0) for number, make in enumerate(makers)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_stop_the_count_nor_make_it_absurd(
    healthy: list[Path], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(healthy))
    content = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, min(400, len(content) - 1)), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = value
    wreck = path.with_name("wreck")
    wreck.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    for stream in containers.examine(wreck):
        assert 0 <= stream.first <= wreck.stat().st_size
        assert stream.length_s is None or stream.length_s >= 0

"""The digest of the audio in a file stays when its tags change, and changes with its audio."""

import shutil
import struct
import time
from pathlib import Path

import mutagen
import mutagen.id3
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from patchifier.containers import payload_digest
from tests import audio_files as made

APE_ITEMS = b"x" * 40  # items, then the footer; a tag with a header has one like it before them
APE = APE_ITEMS + b"APETAGEX" + struct.pack("<IIII8x", 2000, 72, 1, 0)
APE_BOTH = b"APETAGEX" + struct.pack("<IIII8x", 2000, 72, 1, 0xA0000000)
APE_BOTH += APE_ITEMS + b"APETAGEX" + struct.pack("<IIII8x", 2000, 72, 1, 0x80000000)
LYRICS = b"LYRICSBEGIN" + b"y" * 30 + b"000041LYRICS200"
KINDS = (
    "a.mp3", "a.flac", "a.ogg", "a.opus", "a.wav", "a.aiff", "a.m4a", "a.wma", "a.wv", "flac.oga",
)  # fmt: skip
MUXED = {".m4a": ("aac", "ipod"), ".wma": ("wmav2", "asf"), ".wv": ("wavpack", "wv")}


def file_of(path: Path, *, seed: int = 0) -> Path:
    """A file of two seconds in the format of its name."""
    sound = made.music(2.0, rate=44_100, seed=seed).astype(np.float32) * 0.5
    if path.suffix in MUXED:
        pytest.importorskip("av", reason="extra formats")
        codec, container = MUXED[path.suffix]
        return made.muxed(path, 2.0 + seed, codec=codec, format=container)
    format_ = {".opus": "OGG", ".oga": "OGG"}.get(path.suffix)
    subtype = {".opus": "OPUS", ".oga": "VORBIS"}.get(path.suffix)
    rate = 48_000 if subtype == "OPUS" else 44_100
    soundfile.write(path, sound, rate, format=format_, subtype=subtype)
    return path


def tag(path: Path, *, length: int) -> None:
    file = mutagen.File(path, easy=True)
    if file.tags is None:
        file.add_tags()
    if isinstance(file.tags, mutagen.id3.ID3):  # of wav and AIFF
        file.tags.add(mutagen.id3.TIT2(encoding=3, text=["x" * length]))
    else:
        file.tags["Title" if path.suffix == ".wma" else "title"] = ["x" * length]
    file.save()


@pytest.mark.parametrize("name", KINDS)
def test_a_digest_stays_when_tags_are_written_and_removed(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / name)
    before = payload_digest(path)
    content = path.read_bytes()
    for length in (10, 100_000):  # in the room that there is, and far more
        tag(path, length=length)
        assert payload_digest(path) == before
    assert path.read_bytes() != content
    mutagen.File(path).delete()
    assert payload_digest(path) == before
    assert len(before) == 16


@pytest.mark.parametrize("name", KINDS)
def test_other_audio_has_another_digest(name: str, tmp_path: Path) -> None:
    first, second = file_of(tmp_path / name), file_of(tmp_path / f"b{Path(name).suffix}", seed=1)
    assert payload_digest(first) != payload_digest(second)
    content = bytearray(first.read_bytes())
    before = payload_digest(first)
    content[len(content) * 3 // 4] ^= 1
    first.write_bytes(content)
    assert payload_digest(first) != before


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_ends_anywhere_has_a_digest_of_its_own(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / name)
    content, seen = path.read_bytes(), set()
    ends = [0, 3, 5, 9, 20, 40, 60, len(content) // 3, len(content) // 2, len(content)]
    for end in ends:
        path.write_bytes(content[:end])
        seen.add(payload_digest(path))
    assert len(seen) == len(ends)


@pytest.mark.parametrize(
    "behind", [made.ID3V1, APE, APE_BOTH + made.ID3V1, APE + LYRICS + made.ID3V1]
)
@pytest.mark.parametrize("before", [b"", made.id3(), made.id3() + made.id3(300)])
def test_tags_at_both_ends_of_an_mp3_do_not_count(
    before: bytes, behind: bytes, tmp_path: Path
) -> None:
    path = made.mp3(tmp_path / "a.mp3", 2.0)
    digest = payload_digest(path)
    path.write_bytes(before + path.read_bytes() + behind)
    assert payload_digest(path) == digest


@pytest.mark.parametrize(
    "content",
    [
        b"APETAGEX" + struct.pack("<III", 2000, 2**32 - 1, 0) + bytes(12),
        b"ID3\4\0\0\x7f\x7f\x7f\x7f",
        b"x" * 200 + b"APETAGEX" + struct.pack("<III", 2000, 2**32 - 1, 0) + bytes(12),
    ],
)
def test_tags_that_state_to_be_longer_than_their_file_hide_nothing(
    content: bytes, tmp_path: Path
) -> None:
    digests = set()
    for end in (b"", b"1", b"2"):
        (tmp_path / "a.mp3").write_bytes(end + content if content[:1] == b"x" else content + end)
        digests.add(payload_digest(tmp_path / "a.mp3"))
    assert len(digests) == 3


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("healthy")
    return [file_of(folder / name) for name in KINDS]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_stop_a_digest(healthy: list[Path], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(healthy))
    content = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, min(400, len(content) - 1)), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = value
    wreck = path.with_name("wreck")
    wreck.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    assert len(payload_digest(wreck)) == 16


def test_a_file_of_empty_blocks_takes_no_time(tmp_path: Path) -> None:
    atoms = struct.pack(">I4s", 8, b"free") * 2**20
    (tmp_path / "a.m4a").write_bytes(struct.pack(">I4s4s", 12, b"ftyp", b"M4A ") + atoms)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(2**23))
    began_s = time.process_time()
    digests = {payload_digest(tmp_path / name) for name in ("a.m4a", "a.flac")}
    assert len(digests) == 2
    assert time.process_time() - began_s < 5


def test_a_digest_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    first = file_of(tmp_path / "a.ogg")
    second = shutil.copy(first, tmp_path / "other name.mp3")
    assert payload_digest(first) == payload_digest(second)


@pytest.mark.parametrize("length", [2**40, 2**63 - 40, 2**64 - 1])
def test_an_asf_object_that_ends_beyond_any_file_is_a_damaged_one(tmp_path, length):
    header = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
    path = tmp_path / "song.wma"
    path.write_bytes(header + struct.pack("<Q", length) + b"sound" * 20)
    shorter = tmp_path / "other.wma"
    shorter.write_bytes(header + struct.pack("<Q", length) + b"noise" * 20)
    assert payload_digest(path) != payload_digest(shorter)

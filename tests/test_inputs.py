"""What music may be given as: every form of one file gives the same vector, and what is none is named."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

import patchifier
from patchifier import audio
from patchifier.config import RequestError
from patchifier.library.sources import find

RATE = 22_050


@pytest.fixture(scope="module")
def model():
    return patchifier.load("patchifier-paper")


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "song.flac"
    sound = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
    soundfile.write(path, sound.astype(np.float32), RATE)
    return path


@pytest.fixture(scope="module")
def vector(model, song):
    return model.embed(song)


class Stream:
    """An open file that can only be read, as an upload or a response is."""

    def __init__(self, content):
        self.rest = content

    def read(self, size=-1):
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


FORMS = {
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "a stream without seek": lambda path: Stream(path.read_bytes()),
    "samples": lambda path: audio.load(path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_its_vector(model, song, vector, form):
    given = FORMS[form](song)
    if form == "samples":  # not read in blocks: with AVX2, products of other sizes round otherwise
        np.testing.assert_allclose(model.embed(given, RATE), vector, atol=1e-5)
    else:
        np.testing.assert_array_equal(model.embed(given), vector)
    if hasattr(given, "close"):
        given.close()


def test_an_open_file_is_read_from_where_it_stands(model, song, vector):
    stream = io.BytesIO(b"head of a message" + song.read_bytes())
    stream.seek(17)
    np.testing.assert_array_equal(model.embed(stream), vector)


def test_forms_may_be_mixed_in_a_list(model, song, vector):
    found = model.embed([song.read_bytes(), song, str(song)])
    np.testing.assert_allclose(found, [vector] * 3, atol=1e-5)


def test_the_users_folder_is_found(model, song, vector, monkeypatch):
    monkeypatch.setenv("HOME", str(song.parent))
    monkeypatch.setenv("USERPROFILE", str(song.parent))
    np.testing.assert_array_equal(model.embed("~/song.flac"), vector)
    np.testing.assert_array_equal(model.embed(Path("~/song.flac")), vector)


def test_a_file_named_with_a_tilde_is_itself(model, song, vector, tmp_path, monkeypatch):
    (tmp_path / "~song.flac").write_bytes(song.read_bytes())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(model.embed("~song.flac"), vector)


def test_a_part_of_bytes(model, song):
    pieces = list(model.pieces(song.read_bytes(), start_s=1.0, end_s=2.0))
    expected = list(model.pieces(song, start_s=1.0, end_s=2.0))
    np.testing.assert_array_equal(np.concatenate(pieces, 1), np.concatenate(expected, 1))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (b"not audio" * 99, "891 bytes"),
        (b"", "0 bytes"),
        (io.BytesIO(b"not audio" * 99), "BytesIO"),
    ],
)
def test_an_error_names_what_was_given_and_no_temporary_file(model, given, name):
    with pytest.raises(RequestError, match=name) as error:
        model.embed(given)
    assert "patchifier-" not in str(error.value)


def test_a_text_file_says_how_to_open_it(model, song):
    with song.open(encoding="latin-1") as stream, pytest.raises(RequestError, match='"rb"'):
        model.embed(stream)


def test_a_path_of_numpy_is_one_path(model, song, vector):
    for path in np.array([str(song)]):
        np.testing.assert_array_equal(model.embed(path), vector)


def test_memory_in_steps_is_read_as_it_stands(model, song, vector):
    doubled = np.repeat(np.frombuffer(song.read_bytes(), np.uint8), 2)
    np.testing.assert_array_equal(model.embed(memoryview(doubled)[::2]), vector)


NO_MUSIC = {
    "None": lambda folder: None,
    "a number": lambda folder: 5,
    "a dict": lambda folder: {"song": 1},
    "an empty list": lambda folder: [],
    "a name with a zero byte": lambda folder: "a\0b.mp3",
    "an empty name": lambda folder: "",
    "a closed file": lambda folder: closed(folder / "song.flac"),
    "a file that is open for writing": lambda folder: (folder / "new").open("wb"),
}


def closed(path):
    with path.open("rb") as stream:
        return stream


@pytest.mark.parametrize("kind", NO_MUSIC)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_music_is_refused(model, song, kind):
    given = NO_MUSIC[kind](song.parent)
    with pytest.raises(RequestError):
        model.embed(given)
    if hasattr(given, "close"):
        given.close()


def test_nothing_is_left_in_the_temporary_folder(model, song, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model.embed(song.read_bytes())
    with pytest.raises(RequestError):
        model.embed(b"not audio" * 99)
    assert not list(tmp_path.glob("patchifier-*"))


def test_an_empty_iterator_is_no_music(model):
    with pytest.raises(RequestError):
        model.embed(iter(()))


def test_sources_and_models_below_the_users_folder_are_found(song, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(song.parent))
    monkeypatch.setenv("USERPROFILE", str(song.parent))
    assert [clip.path for clip in find(["~/song.flac"])[0]] == [str(song.resolve())]
    assert [clip.path for clip in find("~")[0]] == [str(song.resolve())]
    with pytest.raises(RequestError, match="model"):
        patchifier.load("~/no-such-model")

"""A head: saved, read, damaged, in doubt, and as a model that predicts."""

import dataclasses
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import patchifier
from patchifier import head_files, heads
from patchifier.config import RequestError
from patchifier.heads import Head, Known

RATE = 22_050


@pytest.fixture(scope="module")
def model():
    return patchifier.load()


@pytest.fixture
def head(model):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, model.size)).astype(np.float32) / 30
    return Head(
        ("a", "b", "ü|c"),
        weight,
        np.ones(3, np.float32),
        model.identity,
        "patchifier-base",
        {"n": 3},
    )


def test_a_saved_head_is_the_same(head, tmp_path):
    found = heads.read(head.save(tmp_path / "head"))
    assert (found.names, found.identity, found.facts) == (head.names, head.identity, head.facts)
    np.testing.assert_array_equal(found.weight, head.weight)


def zipped(folder, path, *, prefix="head/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{prefix}{file.name}")
    return path


@pytest.mark.parametrize("prefix", ["head/", ""])
def test_a_head_is_read_from_a_zip_file_of_its_folder(head, model, tmp_path, prefix):
    path = zipped(head.save(tmp_path / "head"), tmp_path / "h.zip", prefix=prefix)
    assert head_files.is_head(path)
    np.testing.assert_array_equal(heads.read(path).weight, head.weight)
    assert patchifier.load(path).task.names == head.names
    with pytest.raises(RequestError):
        head.save(path)


@pytest.mark.parametrize("kind", ["weights missing", "too large", "a torn file", "encrypted"])
def test_a_damaged_zip_file_is_refused(head, tmp_path, kind, monkeypatch):
    folder = head.save(tmp_path / "head")
    if kind == "weights missing":
        (folder / head_files.WEIGHTS).unlink()
    if kind == "too large":
        monkeypatch.setattr(head_files, "MOST_BYTES", 1000)
    path = zipped(folder, tmp_path / "h.zip")
    content = bytearray(path.read_bytes())
    if kind == "a torn file":
        content[200:260] = bytes(60)
    if kind == "encrypted":
        for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            start = content.find(mark)
            while start >= 0:
                content[start + place] |= 1
                start = content.find(mark, start + 1)
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"h\.zip"):
        heads.read(path)


@pytest.mark.parametrize("stated", [100, 2**27])
def test_a_zip_file_that_unpacks_to_more_than_it_states_is_refused_in_little_memory(
    head, tmp_path, stated
):
    path = zipped(head.save(tmp_path / "head"), tmp_path / "h.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "head" / head_files.JSON, head_files.JSON)
        with archive.open(head_files.WEIGHTS, "w") as stream:
            for _ in range(128):
                stream.write(bytes(2**20))
    content = bytearray(path.read_bytes())
    directory = content.rfind(b"PK\1\2")
    content[directory + 24 : directory + 28] = stated.to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"h\.zip"):
            heads.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_file_that_is_compressed_otherwise_is_refused(head, tmp_path, method):
    folder = head.save(tmp_path / "head")
    with zipfile.ZipFile(tmp_path / "h.zip", "w", method) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    with pytest.raises(RequestError, match="neither stored nor deflated"):
        heads.read(tmp_path / "h.zip")


def test_a_zip_file_of_other_things_is_no_head(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.txt").write_text("x")
    assert not head_files.is_head(zipped(tmp_path / "music", tmp_path / "music.zip"))
    (tmp_path / "text.zip").write_text("no zip")
    assert not head_files.is_head(tmp_path / "text.zip")


def test_probabilities_sum_to_one_also_for_large_vectors(head):
    found = head.probabilities(np.full((2, head.size), 1e6, np.float32))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert np.isfinite(found).all()


def test_the_length_of_a_vector_does_not_matter(head):
    vectors = np.random.default_rng(3).standard_normal((4, head.size)).astype(np.float32)
    np.testing.assert_allclose(
        head.probabilities(7 * vectors), head.probabilities(vectors), rtol=1e-5
    )
    assert np.isfinite(head.probabilities(np.zeros((1, head.size), np.float32))).all()


def test_a_head_predicts_as_a_model(head, model, tmp_path):
    loaded = patchifier.load(head.save(tmp_path / "head"))
    sound = 0.1 * np.random.default_rng(1).standard_normal(30 * RATE).astype(np.float32)
    expected = head.probabilities(model.embed(sound, RATE)[None])[0]
    np.testing.assert_allclose(loaded.predict(sound, RATE), expected, rtol=1e-6)
    windows = loaded.predict_windows(sound, RATE, window_s=1e9)
    np.testing.assert_allclose(windows.vectors, expected[None], rtol=1e-4)
    assert loaded.task.names == head.names


@pytest.fixture
def doubting(head):
    """Near the vector of noise it answers, far from it it does not."""
    ones = np.ones(head.size, np.float32)
    known = Known(0 * ones, ones, ones / head.size, 2.0, -1.0, 0.4)
    return dataclasses.replace(head, known=known)


def test_a_head_that_doubts_is_saved_whole_and_one_that_does_not_is_of_the_first_format(
    head, doubting, tmp_path
):
    formats = {}
    for name, one in {
        "plain": head,
        "doubting": doubting,
        "many": dataclasses.replace(doubting, kind="many-of"),
    }.items():
        folder = one.save(tmp_path / name)
        found = heads.read(folder)
        formats[name] = json.loads((folder / "head.json").read_text())["format"]
        assert found.kind == one.kind
        assert (found.known is None) == (one.known is None)
        if one.known:
            assert (found.known.furthest, found.known.beyond, found.known.least) == (2.0, -1.0, 0.4)
            np.testing.assert_array_equal(found.known.mean, one.known.mean)
            np.testing.assert_array_equal(found.known.scale, one.known.scale)
            np.testing.assert_array_equal(found.known.music, one.known.music)
    assert formats == {"plain": 1, "doubting": 2, "many": 2}


def test_labels_of_many_have_probabilities_of_their_own(head):
    many = dataclasses.replace(head, kind="many-of")
    vectors = np.random.default_rng(4).standard_normal((5, head.size)).astype(np.float32)
    logits = heads.unit(vectors) @ head.weight.T.astype(float) + head.bias
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(many.probabilities(vectors), expected, rtol=1e-5)


def test_a_head_answers_near_its_training_and_for_probable_labels(head):
    mean = np.zeros(head.size, np.float32)
    mean[0] = 1.0
    scale = np.full(head.size, head.size**0.5, np.float32)
    near, far = 7 * mean, -mean
    for least, answers in ((0.0, True), (0.99, False)):
        one = dataclasses.replace(head, known=Known(mean, scale, mean, 0.5, -1.0, least))
        assert one.sure(np.stack([near, far])).tolist() == [answers, False]
        assert one.sure(near).shape == ()
    many = dataclasses.replace(
        head, kind="many-of", known=Known(mean, scale, mean, 0.5, -1.0, 0.99)
    )
    assert many.sure(near)
    strict = dataclasses.replace(head, known=Known(mean, scale, -mean, 0.5, 0.0))
    assert not strict.sure(near)  # on the side of noise
    assert head.sure(np.stack([near, far])).all()


def test_windows_of_a_head_that_doubts_say_where_it_answers(doubting, tmp_path):
    sound = 0.1 * np.random.default_rng(1).standard_normal(10 * RATE).astype(np.float32)
    loaded = patchifier.load(doubting.save(tmp_path / "head"))
    found = loaded.predict_windows(sound, RATE, window_s=5.0)
    vectors = loaded.embed_windows(sound, RATE, window_s=5.0).vectors
    np.testing.assert_array_equal(found.sure, doubting.sure(vectors))


KNOWN_DAMAGE = {
    "no number": lambda known: known | {"furthest": "far"},
    "no limit": lambda known: {"least": 0.4},
    "infinity": lambda known: known | {"furthest": float("inf")},
    "true": lambda known: known | {"least": True},
    "a list": lambda known: [known],
}


@pytest.mark.parametrize("kind", KNOWN_DAMAGE)
def test_damage_of_what_a_head_knows_is_refused(doubting, tmp_path, kind):
    path = doubting.save(tmp_path / "head") / "head.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"known": KNOWN_DAMAGE[kind](values["known"])}))
    with pytest.raises(RequestError):
        heads.read(path.parent)


@pytest.mark.parametrize("wrong", [{"kind": "numbers"}, {"kind": None}, {"known": None}])
def test_a_head_of_another_kind_or_with_surplus_tensors_is_refused(doubting, tmp_path, wrong):
    path = doubting.save(tmp_path / "head") / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(RequestError):
        heads.read(path.parent)


def test_a_head_of_another_model_is_refused(head, tmp_path):
    other = Head(head.names, head.weight, head.bias, "0123", head.model)
    with pytest.raises(RequestError, match="another model"):
        patchifier.load(other.save(tmp_path / "head"))


def test_a_folder_with_other_things_is_not_replaced(head, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RequestError, match="not a head"):
        head.save(tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize("other", ["labels.csv", "inner/head.json", ".head.json.newest.txt"])
def test_a_head_with_files_of_the_user_beside_it_is_not_replaced(head, tmp_path, other):
    folder = head.save(tmp_path / "head")
    before = (folder / head_files.JSON).read_bytes()
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_text("mine")
    with pytest.raises(RequestError, match="beside a head"):
        dataclasses.replace(head, facts={}).save(folder)
    assert (folder / other).read_text() == "mine"
    assert (folder / head_files.JSON).read_bytes() == before


def test_a_head_that_a_kill_left_aside_is_put_back_and_loaded(head, tmp_path):
    folder = head.save(tmp_path / "moods")
    folder.rename(tmp_path / ".moods.old")
    assert patchifier.load(folder).task.names == head.names
    assert [each.name for each in tmp_path.iterdir()] == ["moods"]


def test_heads_in_a_folder_are_those_that_no_kill_left(head, tmp_path):
    for name in ("b", "a", ".b.new", ".b.old", ".c.old"):
        head.save(tmp_path / name)
    (tmp_path / "music").mkdir()
    assert [each.name for each in head_files.find_in(tmp_path)] == ["a", "b", "c"]
    assert not (tmp_path / ".c.old").exists()


def test_a_head_is_found_by_its_name_or_path(head, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    head.save(tmp_path / "moods")
    assert head_files.find("~/moods") == tmp_path / "moods"
    assert heads.read(head_files.find("drums")).names == ("drums", "no drums")
    assert (
        head_files.find(None)
        is head_files.find("patchifier-base")
        is head_files.find(tmp_path)
        is None
    )


def test_facts_that_could_not_be_read_are_not_saved(head, tmp_path):
    with pytest.raises(ValueError, match="finite"):
        dataclasses.replace(head, facts={"accuracy": float("nan")}).save(tmp_path / "head")
    assert not (tmp_path / "head").exists()
    facts = {"n": 3, "share": 0.5, "on": "ü", "enough": True, "none": None, "pair": [1, {"a": 2}]}
    saved = dataclasses.replace(head, facts=facts).save(tmp_path / "head")
    assert heads.read(saved).facts == facts


def test_a_head_with_a_card_and_what_a_kill_left_is_replaced(head, tmp_path):
    folder = head.save(tmp_path / "head")
    for name in ("README.md", ".head.json.new", ".head.json.new-12", ".head.json.new.lock"):
        (folder / name).write_text("old")
    dataclasses.replace(head, facts={"n": 4}).save(folder)
    assert heads.read(folder).facts == {"n": 4}
    assert {each.name for each in folder.iterdir()} == {head_files.JSON, head_files.WEIGHTS}


DAMAGE = {
    "torn": lambda values: None,
    "newer": lambda values: values | {"format": 3},
    "other names": lambda values: values | {"names": ["a", "b"]},
    "a number as a name": lambda values: values | {"names": ["a", "b", 3]},
    "infinity as a format": lambda values: values | {"format": float("inf")},
    "no model": lambda values: values | {"model": ""},
    "two labels of one name": lambda values: values | {"names": ["a", "a", "b"]},
    "an empty label": lambda values: values | {"names": ["a", " ", "b"]},
    "a label of two lines": lambda values: values | {"names": ["a", "b\nc", "d"]},
    "half a character": lambda values: values | {"names": ["a", "\ud800", "b"]},
    "letters as labels": lambda values: values | {"names": "abc"},
    "a mapping as labels": lambda values: values | {"names": {"a": 1, "b": 2, "c": 3}},
    "one name": lambda values: values | {"names": ["a"]},
    "a list": lambda values: [values],
    "NaN in facts": lambda values: values | {"facts": {"accuracy": {"accuracy": float("nan")}}},
    "infinity in facts": lambda values: values | {"facts": {"songs": [1, float("-inf")]}},
    "a number beyond floats in facts": lambda values: values | {"facts": {"songs": 10**400}},
    "half a character in facts": lambda values: values | {"facts": {"on": "\ud800"}},
    "half a character as a fact's name": lambda values: values | {"facts": {"\ud800": 1}},
    "facts that are too deep": lambda values: values | {"facts": {"a": json.loads("[" * 99 + "]" * 99)}},
    "a list of facts": lambda values: values | {"facts": [["n", 3]]},
    "text as facts": lambda values: values | {"facts": "n"},
    "a model that would be downloaded": lambda values: values | {"model": "hf://someone/else"},
    "no identity": lambda values: {name: value for name, value in values.items() if name != "identity"},
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_head_json_is_refused(head, tmp_path, kind):
    path = head.save(tmp_path / "head") / "head.json"
    changed = DAMAGE[kind](json.loads(path.read_text()))
    path.write_text(path.read_text()[:30] if changed is None else json.dumps(changed))
    with pytest.raises(RequestError):
        heads.read(path.parent)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_head_of_a_model_that_cannot_be_a_path_is_refused(head, tmp_path, name):
    folder = dataclasses.replace(head, model=name).save(tmp_path / "head")
    with pytest.raises(RequestError, match="no model"):
        patchifier.load(folder)


def test_a_head_that_names_itself_as_its_model_is_refused(head, tmp_path):
    path = head.save(tmp_path / "head") / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": str(path.parent)}))
    with pytest.raises(RequestError):
        patchifier.load(path.parent)


TENSORS = {
    "NaN": {"weight": np.full((3, 4), np.nan, np.float32), "bias": np.zeros(3, np.float32)},
    "double precision": {"weight": np.zeros((3, 4)), "bias": np.zeros(3, np.float32)},
    "a third": {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32), "x": np.zeros(1, np.float32)},
    "another shape": {"weight": np.zeros((3, 4, 1), np.float32), "bias": np.zeros(3, np.float32)},
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("BF16", 2), ("X", 4)])
def test_weights_of_a_type_that_numpy_lacks_are_refused(head, tmp_path, name, size):
    folder, ends, start = head.save(tmp_path / "head"), {}, 0
    for tensor, shape in (("weight", [3, 4]), ("bias", [3])):
        end = start + int(np.prod(shape)) * size
        ends[tensor] = {"dtype": name, "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(ends).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(start)
    (folder / head_files.WEIGHTS).write_bytes(content)
    with pytest.raises(RequestError, match="damaged"):
        heads.read(folder)


@pytest.mark.parametrize("kind", TENSORS)
def test_damaged_weights_are_refused(head, tmp_path, kind):
    folder = head.save(tmp_path / "head")
    save_file(TENSORS[kind], folder / "head.safetensors")
    with pytest.raises(RequestError):
        heads.read(folder)

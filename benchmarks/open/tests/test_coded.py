"""Copies of recordings as mp3: whose they are, what is left of the sound, and a list that may be trained on."""

import io

import coded
import groups
import numpy as np
import pretraining
import pytest
import soundfile
import synthetic
from sound import SAMPLE_RATE, write

from patchifier import audio
from patchifier.config import RequestError
from patchifier.datasets import Clip
from patchifier.datasets.features import load_features

pytestmark = pytest.mark.usefixtures("threads")


def recording(name):
    return f"pretraining/recordings/{name}.ogg"


def drawn(is_copied):
    """Path of a recording that gets a copy, or of one that does not."""
    paths = (recording(f"track.{number}-00") for number in range(100))
    return next(path for path in paths if (groups.share("coded", path) < coded.SHARE) == is_copied)


COPIED, LEFT = drawn(True), drawn(False)
COPY = coded.copy_path(COPIED)
VECTORS = {COPIED: np.arange(3.0), LEFT: np.ones(3)}


def row(path, **more):
    facts = {"path": path, "seconds": 2.0, "group": f"recordings/game/{path[-8:-4]}"}
    return facts | {"source": f"deb/game/{path[-8:]}", "kind": "recordings"} | more


@pytest.fixture(params=[".npy", ".ogg.npy"])
def root(request, tmp_path, noise):
    """Two recordings of noise, their features by either name, and the lists of build.py and synthetic.py."""
    rows = [row(COPIED, licence="CC0"), row(LEFT, licence="GPL-2+")]
    rendered = {"path": "synthetic/phrases/0.ogg", "group": "synthetic/phrases/0"}
    for number, path in enumerate(VECTORS):
        write(tmp_path / path, noise(2.0, seed=number))
        file = tmp_path / "musicnn" / f"{path.removesuffix('.ogg')}{request.param}"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, VECTORS[path])
    pretraining.write(tmp_path, pretraining.NAMES[1], rows)
    pretraining.write(tmp_path, synthetic.NAMES[1], [*rows, rendered | {"kind": "synthetic"}])
    return tmp_path


def build(root):
    return coded.build(root, root / "musicnn", 1, lambda title: lambda *given: None)


def above_hz(waveform, limit_hz):
    """Share of the power above a frequency."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return power[np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE) > limit_hz].sum() / power.sum()


def test_a_copy_has_the_group_and_the_facts_of_its_track_and_stands_behind_the_other_rows(root):
    assert build(root) == 1
    *before, copy = groups.read_manifest(root / coded.NAME)
    assert before == groups.read_manifest(root / synthetic.NAMES[1])
    assert copy == before[0] | {"path": COPY, "kind": "coded recordings"}
    assert [path.name for path in (root / "pretraining" / "coded").iterdir()] == [COPY[18:]]
    assert pretraining.check(root, [coded.NAME]) == 4


def test_a_copy_is_as_long_as_its_recording_and_not_the_same(root):
    build(root)
    one, other = (audio.load(root / path, sample_rate=SAMPLE_RATE) for path in (COPIED, COPY))
    assert len(other) == pytest.approx(len(one), abs=0.1 * SAMPLE_RATE)
    assert above_hz(one, 10_100) > 0.05
    assert above_hz(other, 10_100) < 0.01
    assert 0.6 < np.std(other) / np.std(one) < 1


@pytest.mark.parametrize("kbits", coded.KBITS)
def test_a_copy_has_the_bit_rate_that_was_drawn_and_loses_more_at_a_lower_one(noise, kbits):
    waveform = noise(4.0)
    content = coded.to_mp3(waveform, SAMPLE_RATE, kbits)
    assert len(content) == pytest.approx(4.0 * kbits * 1000 / 8, rel=0.05)
    decoded, rate = soundfile.read(io.BytesIO(content))
    assert rate == SAMPLE_RATE
    assert (above_hz(decoded, 7000) < 0.05) == (kbits == 24)
    assert above_hz(decoded, 10_100) < 0.01


def test_what_is_louder_than_full_scale_is_turned_down_before_it_is_coded(noise):
    decoded, _ = soundfile.read(io.BytesIO(coded.to_mp3(30 * noise(1.0), SAMPLE_RATE, 64)))
    assert np.abs(decoded).max() < 1.2
    # most samples are far from the peak, and not clipped
    assert np.std(decoded) < 0.5 * np.abs(decoded).max()


def test_a_copy_has_the_vector_of_its_recording(root):
    build(root)
    clips = [Clip(path, str(root / path)) for path in (COPY, COPIED, LEFT)]
    found = load_features(root / "musicnn", clips, name="musicnn")
    assert found.tolist() == [VECTORS[path].tolist() for path in (COPIED, COPIED, LEFT)]


def test_a_second_run_makes_nothing_again(root, monkeypatch):
    build(root)
    monkeypatch.setattr(coded, "to_mp3", None)
    places = [root / COPY, root / coded.NAME]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in places]
    assert build(root) == 1
    assert (root / COPY).stat().st_mtime_ns == before[0][0]
    assert [path.read_bytes() for path in places] == [content for _, content in before]


def test_a_recording_without_features_is_named(root):
    for path in (root / "musicnn").rglob(f"{COPIED.rpartition('/')[2][:-4]}*"):
        path.unlink()
    with pytest.raises(RequestError, match=f"musicnn has no features of {COPIED}: run"):
        build(root)
    assert not (root / coded.NAME).exists()


def test_a_list_with_a_track_that_is_tested_is_refused(root):
    judged = row("clips/a.ogg", split="test", target="a", group=row(COPIED)["group"])
    groups.write_manifest(root / "tasks" / "retrieval.jsonl", [judged])
    with pytest.raises(RequestError, match="shares 'recordings/game"):
        build(root)


def test_the_command_says_how_many_copies_there_are_or_what_is_missing(root, capsys):
    words = [str(root), "--features", str(root / "musicnn"), "--workers", "1"]
    assert coded.main(words) == 0
    assert capsys.readouterr().out == f"1 coded copies, in {root / coded.NAME}\n"
    (root / "musicnn").rename(root / "elsewhere")
    assert coded.main(words) == 2
    assert "has no features of" in capsys.readouterr().err

"""Heads that come with the package: of its model, small, measured, in doubt about sound that is no music."""

import json
import logging

import numpy as np
import other_sounds
import pytest

import patchifier
from patchifier import datasets, heads, weights
from patchifier.cli import models
from patchifier.config import RequestError
from patchifier.library import predict, tagging
from tests import ROOT

RATE = 22_050
EACH = pytest.mark.parametrize("name", weights.heads())
SOUNDS = range(900, 906)  # seeds that train_heads.py does not use


@pytest.fixture(scope="module")
def model():
    return patchifier.load()


@pytest.fixture(scope="module")
def strange(model):
    """Vectors of sounds that are no music, by kind."""
    return {
        kind: np.stack([model.embed(make(np.random.default_rng(n), RATE), RATE) for n in SOUNDS])
        for kind, make in other_sounds.KINDS.items()
    }


def folder(name):
    return weights.ROOT / "heads" / name


def test_heads_are_of_the_default_model_and_small(model):
    assert weights.heads() == ("chord-quality", "drums")
    assert {heads.read(folder(name)).identity for name in weights.heads()} == {model.identity}
    files = [path for path in (weights.ROOT / "heads").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1e6


@EACH
def test_noise_silence_and_speech_are_doubted(name, strange):
    head = heads.read(folder(name))
    doubted = {kind: (~head.sure(vectors)).mean() for kind, vectors in strange.items()}
    assert min(doubted.values()) >= 0.8, doubted
    assert np.mean(list(doubted.values())) >= 0.95, doubted


@EACH
def test_a_card_has_what_was_measured_and_what_a_head_is_bad_at(name):
    kept = json.loads((ROOT / "benchmarks" / "results" / "heads.json").read_text())[name]
    score, facts = kept["valid"]["all"], heads.read(folder(name)).facts
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    assert facts["measured"]["value"] == score["value"]
    assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in card
    assert score["low"] > kept["chance"]["value"]
    assert "ecordings" in card.split("## What it is bad at")[1]


def test_a_head_is_found_by_name_and_a_folder_of_its_name_is_warned_of(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    assert patchifier.load("drums").task.names == ("drums", "no drums")
    assert not caplog.records
    (tmp_path / "drums").mkdir()
    with caplog.at_level(logging.WARNING):
        patchifier.load("drums")
    assert "./drums" in caplog.text
    with pytest.raises(RequestError, match="did you mean 'drums'"):
        patchifier.load("drum")
    with pytest.raises(RequestError, match="chord-quality, drums"):
        patchifier.load().require_task()


def test_info_lists_heads_with_their_accuracy_and_describes_one(tmp_path):
    listed = {row["name"]: row for row in models.info().results if row.get("kind") == "head"}
    assert tuple(listed) == weights.heads()
    shown = models.info().text
    facts = heads.read(folder("drums")).facts["measured"]
    assert f"accuracy {facts['value']:.3f}" in shown
    one = models.info("drums").results
    assert one["names"] == ["drums", "no drums"]
    assert one["card"].endswith("README.md")
    assert models.info(str(folder("drums"))).results["identity"] == one["identity"]


def test_a_head_of_the_package_refuses_another_model(monkeypatch):
    head = heads.read(folder("drums"))
    with pytest.raises(RequestError, match="another model"):
        patchifier.load("patchifier-paper").with_head(head)


def test_chords_of_three_and_four_tones_are_named(tmp_path):
    model = patchifier.load("chord-quality")
    right = []
    for root in range(-5, 6, 2):
        for quality, tones in {"maj": (0, 4, 7), "min": (0, 3, 7), "dom7": (0, 4, 7, 10)}.items():
            found = model.predict(chord(root, tones), RATE)
            right.append(model.task.names[int(found.argmax())] == quality)
    assert np.mean(right) > 0.7  # of 18; by guessing 0.125


def chord(root, tones):
    """Decaying tones with overtones, as of a plucked string; root 0 is middle C."""
    t = np.arange(3 * RATE) / RATE
    pitches = [261.63 * 2 ** ((root + tone) / 12) for tone in tones]
    partials = [np.sin(2 * np.pi * f * h * t) / h**1.5 for f in pitches for h in range(1, 9)]
    return (0.03 * np.exp(-1.5 * t) * np.sum(partials, axis=0)).astype(np.float32)


def test_predictions_without_certainty_have_no_label_and_no_tag(tmp_path):
    other = tmp_path / "noise.wav"
    patchifier.audio.save(other, other_sounds.white(np.random.default_rng(950), RATE))
    song = datasets.load("demo").clips[0].path
    done = predict.predict([str(other), str(song)], tmp_path / "x.jsonl", model="drums", workers=1)
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    said = {row["path"]: (row["sure"], row["label"]) for row in rows}
    assert said[str(other)] == (False, "")
    assert done.unsure == sum(not sure for sure, _ in said.values())
    predict.predict([str(other)], tmp_path / "x.csv", model="drums", workers=1)
    assert tagging.read_labels(tmp_path / "x.csv") == {}

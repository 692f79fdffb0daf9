"""A trained model becomes one of the package: what its card says, and what must not ship."""

import json
import re
import sys
from dataclasses import replace

import measures
import numpy as np
import outcome
import pytest
import recordings
import release
import torch
from card import TrainingData, numbers_of, portable, window_s
from groups import CODED
from measures import EncoderScore
from safetensors.torch import load_file
from tests import small

from patchifier import checkpoint, embed, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import RequestError, update
from patchifier.library import models
from patchifier.nn.encode import model_hash
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from patchifier.train import run

CONFIG = small.config(pretrain={"stage_one": {"batch_size": 16}, "stage_two": {"batch_size": 32}})
FACTS = {
    "dataset": "pretraining",
    "clips": {"train": 2, "validation": 1},
    "seed": 7,
    "command": "patchifier pretrain /data/someone/cache --out /data/runs/it",
    "steps, stage one": 100,
    "steps, stage two": 50,
}
RUN = {
    "name": "it",
    "command": FACTS["command"],
    "machine": "a machine",
    "state": "finished",
    "seconds": 90.0,
    "cache": "/data/someone/cache",
    "precision": "bf16",
}
CONTINUED = RUN | {"command": f"{RUN['command']} --init first/model"}


def row(name, seconds, kind, **more):
    source = {"source": f"deb/game/{name}.ogg"} if kind == "recordings" else {}
    group = f"recordings/game/{name}" if source else f"scores/{name}"
    path = f"pretraining/{name}.ogg"
    return {"path": path, "seconds": seconds, "group": group, "kind": kind, **source, **more}


ROWS = [
    row("a", 3600.0, "recordings", licence="CC0"),
    row("b", 1800.0, "recordings", licence=""),
    row("c", 900.0, "scores", licence="rendered"),
]
TESTED = row("t", 10.0, "recordings", split="test")


@pytest.fixture
def root(tmp_path):
    """A benchmark with a list of three clips to train on, and one that tests."""
    (tmp_path / "root" / "tasks").mkdir(parents=True)
    write_rows(tmp_path / "root" / "tasks" / "recordings-retrieval.jsonl", [TESTED])
    write_rows(tmp_path / "root" / "pretraining.jsonl", ROWS)
    return tmp_path / "root"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where models are released to; few clips tell how far half precision moves vectors."""
    monkeypatch.setattr(weights, "ROOT", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def trained(tmp_path):
    """A model as training leaves it, its run's facts beside it."""

    def make(name="run", *, facts=FACTS, run=RUN, seed=0, head=False, config=CONFIG):
        tuned = (Head(16, 2), Task("one-of", ("a", "b"))) if head else ()
        made = Patchifier(config, seed=seed)
        checkpoint.save(tmp_path / name / "model", Checkpoint(made, config, *tuned, facts=facts))
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        return tmp_path / name / "model"

    return make


@pytest.fixture
def released(home, root):
    """Release a model, and give its card."""

    def publish(model, **how):
        folder, _ = release.release(model, "patchifier-paper", root, home=home, **how)
        assert folder == home / "patchifier-paper"
        return (folder / "README.md").read_text(encoding="utf-8")

    return publish


@pytest.fixture
def refused(home, released):
    def require(said, model, **how):
        with pytest.raises(RequestError, match=said):
            released(model, **how)
        assert not home.exists() or not list(home.iterdir())

    return require


@pytest.fixture
def judged(tmp_path):
    """A judge's folder about these encoders."""

    def write(*specs, runs=None):
        runs = runs or {}
        right = measures.mean_of(np.array([1.0, 0.0, 1.0, 1.0]))
        given = {
            spec: [
                EncoderScore(
                    question, name, tuple("abcd"), 0.25, (right,) * len(runs.get(spec, "1"))
                )
                for question in measures.QUESTIONS
                for name in question.measures
            ]
            for spec in map(str, specs)
        }
        note = f"{specs[0]}: no clip of its training data, /data/someone/cache, is in this test."
        found = outcome.summarise(given, "test", [note])
        outcome.write_outcome(replace(found, runs=runs), tmp_path / "judged")
        return tmp_path / "judged"

    return write


# --- what is written ---


def test_a_released_model_gives_the_trained_ones_vectors_from_half_the_bytes(
    trained, released, home, noise
):
    model = trained()
    released(model)
    assert [path.name for path in home.iterdir()] == ["patchifier-paper"]
    stored = load_file(home / "patchifier-paper" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    one, two = (embed.load(each).embed(noise(2.0), 22_050) for each in (model, "patchifier-paper"))
    assert 0 < np.abs(one - two).max() < 1e-2


def test_the_card_says_what_was_heard_what_training_cost_and_every_fact(trained, released, home):
    card = released(trained(facts=FACTS | {"something new": "kept"}))
    for text in (
        "1.8 hours in 3 clips, the list `pretraining.jsonl`",
        "2 trained and 1 were held out",
        "| recordings | 1.50 |",
        "| scores | 0.25 |",
        "| recordings | CC0 | 1.00 |",
        "| recordings | not stated | 0.50 |",
        "| game | 1.50 |",
        "a machine: 1.5 minutes. Steps: 100 (stage one), 50 (stage two); 3,200 clips, "
        "0.01 % of those",  # of 32 million
        "| something new | kept |",
        "| seed | 7 |",
        "| run 1, precision | bf16 |",
        "| run 1, cache | someone/cache |",
        "pretrain someone/cache --out runs/it",
        "Zhao and Li",
    ):
        assert text in card, text
    assert TrainingData("x", ROWS).hours == 1.75
    assert card.index("- Pitch:") < card.index("- It reads mono audio up to 11 kHz")
    assert "MagnaTagATune" in card.split("## Fair and unfair tests")[1].split("Unfair:")[0]
    assert re.search(r"\| commit \| ([0-9a-f]{40}|unknown)", card)
    facts = checkpoint.load(home / "patchifier-paper").facts
    names = ("clips trained on", "share of the paper", "minutes", "hours")
    assert [facts[name] for name in names] == [3200, 1e-4, 1.5, 1.8]
    config = (home / "patchifier-paper" / "config.json").read_text()
    assert "something new" in config
    assert "/data" not in card + config  # no place of the machine


def test_the_card_names_the_parts_of_a_vector_in_their_order():
    embed = {"whiten": True, "summaries": ["pulse", "rhythm"], "n_components": 9}
    behind = "9 principal components of mean+std of layers -1, then the descriptors pulse, rhythm of the window"
    assert numbers_of(update(CONFIG, {"embed": embed})) == behind
    similar = numbers_of(update(CONFIG, {"embed": embed | {"n_similarity": 4}}))
    assert (
        similar
        == f"4 principal components of what is predicted of another model's vectors, then {behind}"
    )
    assert numbers_of(CONFIG) == "mean+std of layers -1"


def test_coded_copies_are_told_apart_and_add_no_hours_of_music(root, trained, released, home):
    copy = ROWS[0] | {"path": "pretraining/coded/a.mp3", "kind": CODED}
    write_rows(root / "pretraining.jsonl", [*ROWS, copy])
    card = released(trained())
    for text in (
        "1.8 hours in 3 clips and 1 coded copies, the list `pretraining.jsonl`",
        "Coded recordings are copies of half of the recordings in mp3 at 24 to 64 kbit/s",
        "Their 1.0 hours are no further music and are not counted above.",
        "Everything but recordings and their copies was rendered",
        "| recordings | 1.50 |",
        "| coded recordings | 1.00 |",
        "| coded recordings | CC0 | 1.00 |",
        "| game | 1.50 |",
    ):
        assert text in card, text
    assert checkpoint.load(home / "patchifier-paper").facts["hours"] == 1.8
    write_rows(root / "pretraining.jsonl", ROWS)
    card = released(trained("plain"))
    assert "Everything but recordings was rendered" in card
    assert "oded" not in card.split("## Compute")[0]
    del copy["source"]
    write_rows(root / "pretraining.jsonl", [*ROWS, copy])
    with pytest.raises(RequestError, match=r"coded/a\.mp3 does not say its source"):
        released(trained("unnamed"))


DRAWN = {
    "clips": "all",
    "number": "2",
    "the model": "0.01000",
    "kriging": "0.01100",
    "model - kriging": "-0.00100 [-0.00200, -0.00050]",
    "onset F": "0.250",
}


def test_the_card_has_the_errors_of_masked_patches_beside_the_references(
    tmp_path, trained, released, refused
):
    model, drawn = trained(), tmp_path / "drawn"
    facts = {"weights": "others", "side": "test", "rows": [DRAWN]}
    run.write_json(drawn / "reconstruction.json", facts)
    refused("other weights", model, reconstruction=drawn)
    facts["weights"] = model_hash(checkpoint.load(model).model)
    run.write_json(drawn / "reconstruction.json", facts)
    card = released(model, reconstruction=drawn)
    for cells in (
        "| all | 2 | 0.01000 | 0.01100 |",
        "| all | -0.00100 [-0.00200, -0.00050] |",
        "| all | 0.250 |",
        "the test side",
    ):
        assert cells in card, cells


def test_runs_that_led_to_the_model_are_added(trained, released):
    facts = FACTS | {"steps, stage two": 10, "seed": 3}
    first = trained("first", facts=facts, run=RUN | {"machine": "another"})
    card = released(trained("second", run=CONTINUED), before=[first])
    cost = "another; a machine: 3.0 minutes. Steps: 200 (stage one), 60 (stage two); 5,120 clips,"
    assert cost in card
    assert "| run 1, seed | 3 |" in card


def test_training_data_of_the_runs_before_is_checked_and_counted_too(root, trained, released):
    own = ROWS[0] | {"path": "pretraining/d.ogg", "seconds": 7200.0}
    write_rows(root / "pretraining-recordings.jsonl", [own])
    facts = FACTS | {"dataset": "pretraining-recordings", "clips": {"train": 1}}
    first, second = trained("first", facts=facts), trained("second", run=CONTINUED)
    lists = "the list `pretraining-recordings.jsonl and pretraining.jsonl`"
    assert f"3.8 hours in 4 clips, {lists}" in released(second, before=[first])
    write_rows(root / "pretraining-recordings.jsonl", [own | {"source": TESTED["source"]}])
    with pytest.raises(RequestError, match=r"shares 'deb/game/t\.ogg'"):
        released(second, before=[first])
    unknown = trained("unknown", facts=FACTS | {"dataset": "something"})
    with pytest.raises(RequestError, match=r"something\.jsonl is no list in"):
        released(second, before=[unknown])


def test_the_judges_table_is_on_the_card_with_the_model_by_its_name(
    tmp_path, trained, released, judged
):
    model = trained()
    card = released(model, scores=judged(model, "mel-stats"))
    assert "Open benchmark, test side." in card
    value = r"^\| patchifier-paper \| 66\.7"  # (0.75 - 0.25) / (1 - 0.25)
    assert re.search(value, card, re.MULTILINE)
    assert "| patchifier-paper - mel-stats |" in card
    assert "patchifier-paper: no clip of its training data, someone/cache, is in this test." in card
    assert str(tmp_path) not in card


def test_a_row_of_several_seeds_is_about_each_of_them(trained, released, judged):
    model = trained()
    runs = {"three seeds": [str(model), "elsewhere/model"], "mel-stats": ["mel-stats"]}
    card = released(model, scores=judged("three seeds", "mel-stats", runs=runs))
    assert "| patchifier-paper - mel-stats |" in card
    assert "patchifier-paper is the mean of 2 runs; endpoints one by one:" in card
    assert "three seeds" not in card


def test_absolute_paths_lose_their_beginning_and_nothing_else_changes():
    given = "--out=/a/b/c x '/tmp' ~/runs/it 1/2 hf://a/b https://x.org/y/z runs/it"
    expected = "--out=b/c x 'tmp' runs/it 1/2 hf://a/b https://x.org/y/z runs/it"
    assert portable(given) == expected
    nested = {"a": ["features:/x/y/musicnn/%FAMILY%", 1.5]}
    assert portable(nested) == {"a": ["features:musicnn/%FAMILY%", 1.5]}


# --- what is refused ---


def lacking(name):
    return [ROWS[2], {key: value for key, value in ROWS[0].items() if key != name}]


def more(source):
    return [*ROWS, ROWS[0] | {"path": "pretraining/d.ogg", "source": source}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            more("/".join(["deb", *sorted(recordings.demo_files())[0]])),
            r"pretraining/d\.ogg belongs to the demo",
        ),
        (more(TESTED["source"]), r"shares 'deb/game/t\.ogg'"),
        *((lacking(name), f"does not say its {name}") for name in ("licence", "seconds", "source")),
    ],
)
def test_a_list_of_what_must_not_be_heard_is_refused(rows, said, root, trained, refused):
    write_rows(root / "pretraining.jsonl", rows)
    refused(said, trained())


def test_a_root_without_tasks_is_refused(root, trained, refused):
    (root / "tasks" / "recordings-retrieval.jsonl").unlink()
    refused("has no tasks", trained())


def test_another_list_is_named(trained, refused, released):
    model = trained(facts=FACTS | {"dataset": "elsewhere"})
    refused(r"elsewhere\.jsonl is no list.*pretraining\.jsonl.*--list", model)
    assert "1.8 hours" in released(model, list_name="pretraining.jsonl")


def test_too_many_parameters_or_bytes_are_refused(trained, refused, monkeypatch):
    monkeypatch.setattr(release, "LARGEST_B", 1000)
    refused("MB in half precision", trained())
    monkeypatch.setattr(release, "LARGEST_PARAMETERS", 1000)
    refused("parameters, expected at most 1,000", trained())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": True}, "was fine-tuned"),
        ({"run": RUN | {"state": "interrupted"}}, "its run is interrupted"),
        ({"run": CONTINUED}, "name that one with --before"),
        ({"facts": {"dataset": "pretraining"}}, "how many steps"),
        (
            {"facts": FACTS | {"clips": {"train": 999}}},
            r"trained on 999 clips, expected at most the 3 of pretraining\.jsonl",
        ),
    ],
    ids=["head", "unfinished", "started from another", "steps unknown", "too many clips"],
)
def test_a_model_whose_training_is_not_all_known_is_refused(change, said, trained, refused):
    refused(said, trained(**change))


def test_a_model_without_its_run_is_refused(tmp_path, trained, refused):
    model = trained()
    (tmp_path / "run" / "run.json").unlink()
    refused("run.json is missing", model)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{}/run/model", "patchifier-paper"], "several rows that would be called patchifier-pap"),
        (["mfcc", "mel-stats"], "not about patchifier-paper"),
    ],
)
def test_a_table_about_others_or_two_of_one_name_is_refused(
    rows, said, tmp_path, trained, refused, judged
):
    refused(said, trained(), scores=judged(*[name.format(tmp_path) for name in rows]))


def test_a_name_without_texts_is_refused(trained, home, root):
    said = r"no section 'mine', expected one of patchifier-base, patchifier-paper"
    with pytest.raises(RequestError, match=said):
        release.release(trained(), "mine", root, home=home)


def test_a_refused_model_leaves_the_released_one_as_it_is(trained, released, home, monkeypatch):
    released(trained())
    before = weights.find("patchifier-paper").joinpath("model.safetensors").read_bytes()
    monkeypatch.setattr(release, "LARGEST_B", 1000)
    with pytest.raises(RequestError):
        released(trained("other", seed=1))
    assert (home / "patchifier-paper" / "model.safetensors").read_bytes() == before


def test_folders_of_notes_and_features_lose_the_machine_and_the_identity_stays(
    trained, released, home
):
    folders = {"note_labels": "/data/root/labels", "teacher_features": "/data/root/musicnn"}
    model = trained(config=update(CONFIG, {"pretrain": folders}))
    card = released(model)
    assert "with the notes of rendered music as targets and with vectors of another model" in card
    text = (home / "patchifier-paper" / "config.json").read_text()
    assert "/data" not in text
    assert '"note_labels": "root/labels"' in text
    made = checkpoint.load(home / "patchifier-paper")
    assert made.config.pretrain.teacher_features == "root/musicnn"
    assert made.config.embed == CONFIG.embed


def test_what_is_replaced_is_an_older_model_from_then_on(trained, released, home):
    first = trained()
    released(first)
    assert not weights.older()
    identity = embed.load(home / "patchifier-paper").identity
    released(trained("second", seed=1))
    assert weights.older() == {identity: "patchifier-paper"}
    assert models.called(identity) == "the patchifier-paper of another version"
    now = embed.load(home / "patchifier-paper").identity
    released(first)  # the first is back, and is not older than itself
    assert weights.older() == {now: "patchifier-paper"}


def test_limits_name_the_length_of_a_window_and_of_a_vector():
    sizes = {"size": 1234, "window_s": 9.66}
    texts = [text.format(**sizes) for text in release.read_texts("patchifier-base")["weak"]]
    assert any("all 1,234 numbers" in text for text in texts)
    assert any("more than 9.7 s apart" in text for text in texts)
    assert window_s(CONFIG) == pytest.approx(CONFIG.pretrain.n_patches * 0.743, abs=0.01)


# --- as a command ---


def test_the_command_says_what_it_wrote_and_what_comes_next(
    trained, home, root, monkeypatch, capsys
):
    asked, model = release.release, str(trained())
    monkeypatch.setattr(release, "release", lambda *given, **how: asked(*given, **how, home=home))

    def command(name):
        monkeypatch.setattr(sys, "argv", ["release.py", model, name, "--root", str(root)])
        return release.main(), capsys.readouterr().out

    code, said = command("patchifier-base")
    assert code == 0
    assert "half precision moves vectors of 14 bundled clips by at most" in said
    assert "python tests/golden/make.py patchifier-base" in said
    assert command("nobody")[0] == 2

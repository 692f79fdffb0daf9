"""A trained model becomes one of the package: what its card says is counted, nothing is dropped, and what must not ship does not."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import measures
import numpy as np
import outcome
import pytest
import recordings
import release
import torch
from card import Heard, portable
from measures import Answered
from safetensors.torch import load_file

from patchifier import checkpoint, embed, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from patchifier.train import run

TINY = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32}
STAGES = {"stage_one": {"batch_size": 16}, "stage_two": {"batch_size": 32}}
FACTS = {
    "dataset": "pretraining",
    "clips": {"train": 2, "validation": 1},
    "seed": 7,
    "command": "patchifier pretrain /data/someone/cache --out /data/runs/it",
}
FACTS |= {"steps, stage one": 100, "steps, stage two": 50}
RUN = {
    "name": "it",
    "command": FACTS["command"],
    "machine": "a machine",
    "state": "finished",
    "seconds": 90.0,
    "cache": "/data/someone/cache",
    "precision": "bf16",
}
ROWS = [
    {
        "path": "pretraining/a.ogg",
        "seconds": 3600.0,
        "group": "recordings/game/a",
        "source": "deb/game/a.ogg",
        "kind": "recordings",
        "licence": "CC0",
    },
    {
        "path": "pretraining/b.ogg",
        "seconds": 1800.0,
        "group": "recordings/game/b",
        "source": "deb/game/b.ogg",
        "kind": "recordings",
        "licence": "",
    },
    {
        "path": "pretraining/c.ogg",
        "seconds": 900.0,
        "group": "scores/c",
        "kind": "scores",
        "licence": "rendered",
    },
]
TESTED = {
    "path": "clips/t.ogg",
    "group": "recordings/game/t",
    "source": "deb/game/t.ogg",
    "split": "test",
}


def trained(
    folder: Path,
    *,
    facts: dict = FACTS,
    run: dict = RUN,
    model: dict = TINY,
    seed: int = 0,
    head: bool = False,
) -> Path:
    """A model as training leaves it, its run's facts beside it."""
    config = update(Config(), {"model": model, "pretrain": STAGES})
    made = Checkpoint(
        Patchifier(config, seed=seed),
        config,
        *((Head(16, 2), Task("one-of", ("a", "b"))) if head else ()),
        facts=facts,
    )
    checkpoint.save(folder / "model", made)
    (folder / "run.json").write_text(json.dumps(run))
    return folder / "model"


@pytest.fixture
def root(tmp_path):
    """A benchmark with a list of three clips to train on, and one that tests."""
    (tmp_path / "root" / "tasks").mkdir(parents=True)
    (tmp_path / "root" / "tasks" / "recordings-retrieval.jsonl").write_text(
        json.dumps(TESTED) + "\n"
    )
    write_list(tmp_path / "root", ROWS)
    return tmp_path / "root"


def write_list(root: Path, rows: list) -> None:
    (root / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where models are released to; few clips tell how far half precision moves vectors."""
    monkeypatch.setattr(weights, "ROOT", tmp_path / "home")
    return tmp_path / "home"


def released(tmp_path: Path, home: Path, root: Path, model: Path, **how) -> str:
    folder, _ = release.release(model, "patchifier-paper", root, home=home, **how)
    assert folder == home / "patchifier-paper"
    return (folder / "README.md").read_text(encoding="utf-8")


def judged(folder: Path, specs: list[str], runs: dict[str, list[str]] | None = None) -> Path:
    """A judge's folder about these encoders."""
    right = np.array([1.0, 0.0, 1.0, 1.0])
    given = {
        spec: [
            Answered(
                question,
                name,
                tuple("abcd"),
                0.25,
                (measures.mean_of(right),) * len((runs or {}).get(spec, [spec])),
            )
            for question in measures.QUESTIONS
            for name in question.measures
        ]
        for spec in specs
    }
    found = outcome.summarise(
        given, "test", [f"{specs[0]}: no clip of /data/someone/cache is heard in this test."]
    )
    outcome.write_outcome(replace(found, runs=runs or {}), folder)
    return folder


# --- what is written ---


def test_a_released_model_gives_the_trained_ones_vectors_from_half_the_bytes(
    tmp_path, home, root, noise
):
    model = trained(tmp_path / "run")
    released(tmp_path, home, root, model)
    assert sorted(path.name for path in home.iterdir()) == ["patchifier-paper"]
    stored = load_file(home / "patchifier-paper" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.float16}
    one, two = (
        embed.load(each).embed(noise(2.0), 22_050) for each in (str(model), "patchifier-paper")
    )
    assert 0 < np.abs(one - two).max() < 1e-2


def test_the_card_counts_hours_by_kind_licence_and_package(tmp_path, home, root):
    card = released(tmp_path, home, root, trained(tmp_path / "run"))
    assert "1.8 hours in 3 clips, the list `pretraining.jsonl`" in card
    assert "2 trained and 1 were held out" in card
    for row in (
        "| recordings | 1.50 |",
        "| scores | 0.25 |",
        "| recordings | CC0 | 1.00 |",
        "| recordings | not stated | 0.50 |",
        "| game | 1.50 |",
    ):
        assert row in card, row
    assert Heard("x", ROWS).hours == 1.75


def test_the_card_counts_what_training_cost(tmp_path, home, root):
    card = released(tmp_path, home, root, trained(tmp_path / "run"))
    assert (
        "a machine: 1.5 minutes. Steps: 100 (stage one), 50 (stage two); 3,200 clips heard, 0.01 % of those"
        in card
    )  # of 32 million
    facts = checkpoint.load(home / "patchifier-paper").facts
    assert (
        facts["clips heard"],
        facts["share of the paper"],
        facts["minutes"],
        facts["hours"],
    ) == (3200, 1e-4, 1.5, 1.8)


ROW = {
    "clips": "all",
    "number": "2",
    "the model": "0.01000",
    "kriging": "0.01100",
    "model - kriging": "-0.00100 [-0.00200, -0.00050]",
    "onset F": "0.250",
}


def test_the_card_has_the_errors_of_masked_patches_beside_the_references(tmp_path, home, root):
    model = trained(tmp_path / "run")
    weights_hash = checkpoint.weights_hash(checkpoint.load(model).model)
    run.write_json(
        tmp_path / "drawn" / "reconstruction.json",
        {"weights": weights_hash, "side": "test", "rows": [ROW]},
    )
    card = released(tmp_path, home, root, model, reconstruction=tmp_path / "drawn")
    for cells in (
        "| all | 2 | 0.01000 | 0.01100 |",
        "| all | -0.00100 [-0.00200, -0.00050] |",
        "| all | 0.250 |",
        "the test side",
    ):
        assert cells in card, cells


def test_errors_of_other_weights_are_refused(tmp_path, home, root):
    run.write_json(
        tmp_path / "drawn" / "reconstruction.json",
        {"weights": "others", "side": "test", "rows": [ROW]},
    )
    with pytest.raises(RequestError, match="other weights"):
        released(tmp_path, home, root, trained(tmp_path / "run"), reconstruction=tmp_path / "drawn")
    assert not home.exists()


def test_runs_that_led_to_the_model_are_added(tmp_path, home, root):
    first = trained(
        tmp_path / "first",
        facts=FACTS | {"steps, stage two": 10, "seed": 3},
        run=RUN | {"machine": "another"},
    )
    second = trained(
        tmp_path / "second", run=RUN | {"command": f"{RUN['command']} --init first/model"}
    )
    card = released(tmp_path, home, root, second, before=[first])
    assert (
        "another; a machine: 3.0 minutes. Steps: 200 (stage one), 60 (stage two); 5,120 clips heard"
        in card
    )
    assert "| run 1, seed | 3 |" in card


def test_what_the_runs_before_heard_is_held_to_the_tasks_and_counted_too(tmp_path, home, root):
    own = [ROWS[0] | {"path": "pretraining/d.ogg", "seconds": 7200.0}]
    (root / "pretraining-recordings.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in own)
    )
    first = trained(
        tmp_path / "first",
        facts=FACTS | {"dataset": "pretraining-recordings", "clips": {"train": 1}},
    )
    second = trained(
        tmp_path / "second", run=RUN | {"command": f"{RUN['command']} --init first/model"}
    )
    assert (
        "3.8 hours in 4 clips, the list `pretraining-recordings.jsonl and pretraining.jsonl`"
        in released(tmp_path, home, root, second, before=[first])
    )
    (root / "pretraining-recordings.jsonl").write_text(
        json.dumps(own[0] | {"source": TESTED["source"]}) + "\n"
    )
    with pytest.raises(RequestError, match=r"shares 'deb/game/t\.ogg'"):
        released(tmp_path, home, root, second, before=[first])
    unknown = trained(tmp_path / "unknown", facts=FACTS | {"dataset": "something"})
    with pytest.raises(RequestError, match=r"something\.jsonl is no list in"):
        released(tmp_path, home, root, second, before=[unknown])
    more = trained(tmp_path / "more", facts=FACTS | {"clips": {"train": 999}})
    with pytest.raises(
        RequestError, match=r"trained on 999 clips, expected at most the 3 of pretraining\.jsonl"
    ):
        released(tmp_path, home, root, more)


def test_every_fact_of_model_and_run_is_on_the_card_and_no_place_of_the_machine(
    tmp_path, home, root
):
    card = released(
        tmp_path, home, root, trained(tmp_path / "run", facts=FACTS | {"something new": "kept"})
    )
    for row in (
        "| something new | kept |",
        "| seed | 7 |",
        "| run 1, precision | bf16 |",
        "| run 1, cache | someone/cache |",
    ):
        assert row in card, row
    assert "pretrain someone/cache --out runs/it" in card
    config = (home / "patchifier-paper" / "config.json").read_text()
    assert "something new" in config
    assert "/data" not in card + config
    assert re.search(r"\| commit \| ([0-9a-f]{40}|unknown)", card)


def test_the_judges_table_is_on_the_card_with_the_model_by_its_name(tmp_path, home, root):
    model = trained(tmp_path / "run")
    card = released(
        tmp_path, home, root, model, scores=judged(tmp_path / "judged", [str(model), "mel-stats"])
    )
    assert "Open benchmark, test side." in card
    assert re.search(
        r"^\| patchifier-paper \| 66\.7", card, re.MULTILINE
    )  # (0.75 - 0.25) / (1 - 0.25)
    assert "| patchifier-paper - mel-stats |" in card
    assert "patchifier-paper: no clip of someone/cache is heard in this test." in card
    assert str(tmp_path) not in card


def test_a_row_of_several_seeds_is_about_each_of_them(tmp_path, home, root):
    model = trained(tmp_path / "run")
    runs = {"three seeds": [str(model), "elsewhere/model"], "mel-stats": ["mel-stats"]}
    card = released(
        tmp_path,
        home,
        root,
        model,
        scores=judged(tmp_path / "judged", ["three seeds", "mel-stats"], runs),
    )
    assert "| patchifier-paper - mel-stats |" in card
    assert "patchifier-paper is the mean of 2 runs; endpoints one by one:" in card
    assert "three seeds" not in card


def test_a_table_with_two_rows_of_one_name_is_refused(tmp_path, home, root):
    model = trained(tmp_path / "run")
    refused(
        tmp_path,
        home,
        root,
        "several rows that would be called patchifier-paper",
        model,
        scores=judged(tmp_path / "judged", [str(model), "patchifier-paper"]),
    )


def test_words_of_the_card_are_those_of_all_models_and_its_own(tmp_path, home, root):
    card = released(tmp_path, home, root, trained(tmp_path / "run"))
    assert "Zhao and Li" in card
    assert card.index("- Pitch:") < card.index("- Mono, up to 11 kHz")
    assert "MagnaTagATune" in card.split("## Fair and unfair tests")[1].split("Unfair:")[0]


def test_absolute_paths_lose_their_beginning_and_nothing_else_changes():
    assert (
        portable("--out=/a/b/c x '/tmp' ~/runs/it 1/2 hf://a/b https://x.org/y/z runs/it")
        == "--out=b/c x 'tmp' runs/it 1/2 hf://a/b https://x.org/y/z runs/it"
    )
    assert portable({"a": ["features:/x/y/musicnn/%FAMILY%", 1.5]}) == {
        "a": ["features:musicnn/%FAMILY%", 1.5]
    }


# --- what is refused ---


def refused(tmp_path: Path, home: Path, root: Path, said: str, model: Path, **how) -> None:
    with pytest.raises(RequestError, match=said):
        released(tmp_path, home, root, model, **how)
    assert not home.exists() or not list(home.iterdir())


def test_a_track_of_the_demo_in_the_list_is_refused(tmp_path, home, root):
    package, inside = sorted(recordings.demo_files())[0]
    write_list(
        root, [*ROWS, ROWS[0] | {"path": "pretraining/d.ogg", "source": f"deb/{package}/{inside}"}]
    )
    refused(
        tmp_path, home, root, r"pretraining/d\.ogg belongs to the demo", trained(tmp_path / "run")
    )


def test_a_tested_track_in_the_list_is_refused(tmp_path, home, root):
    write_list(root, [*ROWS, ROWS[0] | {"path": "pretraining/d.ogg", "source": TESTED["source"]}])
    refused(tmp_path, home, root, "clips that judge", trained(tmp_path / "run"))


@pytest.mark.parametrize("lacking", ["licence", "seconds", "source"])
def test_a_row_that_does_not_say_what_it_is_is_refused(lacking, tmp_path, home, root):
    write_list(root, [ROWS[2], {key: value for key, value in ROWS[0].items() if key != lacking}])
    refused(tmp_path, home, root, f"does not say its {lacking}", trained(tmp_path / "run"))


def test_a_root_without_tasks_is_refused(tmp_path, home, root):
    (root / "tasks" / "recordings-retrieval.jsonl").unlink()
    refused(tmp_path, home, root, "has no tasks", trained(tmp_path / "run"))


def test_another_list_is_named(tmp_path, home, root):
    model = trained(tmp_path / "run", facts=FACTS | {"dataset": "elsewhere"})
    refused(
        tmp_path, home, root, r"elsewhere\.jsonl is no list.*pretraining\.jsonl.*--heard", model
    )
    assert "1.8 hours" in released(tmp_path, home, root, model, heard_name="pretraining.jsonl")


def test_too_many_parameters_or_bytes_are_refused(tmp_path, home, root, monkeypatch):
    model = trained(tmp_path / "run")
    monkeypatch.setattr(release, "LARGEST_B", 1000)
    refused(tmp_path, home, root, "MB in half precision", model)
    monkeypatch.setattr(release, "LARGEST_PARAMETERS", 1000)
    refused(tmp_path, home, root, "parameters, expected at most 1,000", model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": True}, "was fine-tuned"),
        ({"run": RUN | {"state": "interrupted"}}, "its run is interrupted"),
        (
            {"run": RUN | {"command": "patchifier pretrain cache --init first/model"}},
            "name that one with --before",
        ),
        ({"facts": {"dataset": "pretraining"}}, "how many steps"),
    ],
    ids=["head", "unfinished", "started from another", "steps unknown"],
)
def test_a_model_whose_training_is_not_all_known_is_refused(change, said, tmp_path, home, root):
    refused(tmp_path, home, root, said, trained(tmp_path / "run", **change))


def test_a_model_without_its_run_is_refused(tmp_path, home, root):
    model = trained(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    refused(tmp_path, home, root, "run.json is missing", model)


def test_a_table_about_others_is_refused(tmp_path, home, root):
    refused(
        tmp_path,
        home,
        root,
        "not about patchifier-paper",
        trained(tmp_path / "run"),
        scores=judged(tmp_path / "judged", ["mfcc", "mel-stats"]),
    )


def test_a_name_without_words_is_refused(tmp_path, home, root):
    with pytest.raises(
        RequestError, match=r"no section 'mine', expected one of patchifier-base, patchifier-paper"
    ):
        release.release(trained(tmp_path / "run"), "mine", root, home=home)


def test_a_refused_model_leaves_the_released_one_as_it_is(tmp_path, home, root, monkeypatch):
    released(tmp_path, home, root, trained(tmp_path / "run"))
    before = weights.find("patchifier-paper").joinpath("model.safetensors").read_bytes()
    monkeypatch.setattr(release, "LARGEST_B", 1000)
    with pytest.raises(RequestError):
        released(tmp_path, home, root, trained(tmp_path / "other", seed=1))
    assert (home / "patchifier-paper" / "model.safetensors").read_bytes() == before


# --- as a command ---


def test_the_command_says_what_it_wrote_and_what_comes_next(
    tmp_path, home, root, monkeypatch, capsys
):
    model = trained(tmp_path / "run")
    asked = release.release
    monkeypatch.setattr(release, "release", lambda *given, **how: asked(*given, **how, home=home))
    monkeypatch.setattr(
        sys, "argv", ["release.py", str(model), "patchifier-base", "--root", str(root)]
    )
    assert release.main() == 0
    said = capsys.readouterr().out
    assert "half precision moves vectors of 14 bundled clips by at most" in said
    assert "python tests/golden/make.py patchifier-base" in said
    monkeypatch.setattr(sys, "argv", ["release.py", str(model), "nobody", "--root", str(root)])
    assert release.main() == 2

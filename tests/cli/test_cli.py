"""Commands as a user meets them: exit codes, messages, --json, and no torch for --help."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

from patchifier import cache, checkpoint, cli, datasets, embed, evaluate, weights
from patchifier.cli.command import Overrides, parse, parser
from patchifier.cli.progress import progress
from patchifier.config import Config, RequestError, update
from patchifier.evaluate.report.tables import interval_text
from patchifier.io import Hundredths, Steps
from patchifier.jobs import file_lock, folder_lock
from patchifier.nn.model import Patchifier
from patchifier.train.run import Interrupted
from tests import ROOT

pytestmark = pytest.mark.usefixtures("thread_pool", "few_draws")
SIZES = {"channels": [4, 4, 4, 4, 8], "embed_dim": 32, "n_layers": 1, "n_heads": 2, "mlp_dim": 64}
STAGES = {"stage_one": {"steps": 2, "batch_size": 4}, "stage_two": {"steps": 2, "batch_size": 4}}
TINY = {
    "model": {**SIZES, "max_patches": 8},
    "pretrain": {"n_patches": 8, "validation_fraction": 0.2, **STAGES},
    "finetune": {
        "validate_every": 2,
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.001},
    },
}
NO_UTF8 = r"bad\xff.wav: its name is not UTF-8: rename it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A manifest of 20 clips of two kinds, a cache, a config and a trained model."""
    root = tmp_path_factory.mktemp("cli")
    chance = np.random.default_rng(0)
    rows = ["path,target,group"]
    for number in range(20):
        noise = 0.1 * chance.standard_normal(22_050 * 7)
        tone = 0.3 * np.sin(2 * np.pi * (300 + 20 * number) * np.arange(22_050 * 7) / 22_050)
        soundfile.write(root / f"{number}.wav", noise if number % 2 else tone, 22_050)
        rows.append(f"{number}.wav,{'noise' if number % 2 else 'tone'},g{number}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    (root / "tiny.json").write_text(json.dumps(TINY))
    prepare = f"prepare {root}/clips.csv --out {root}/cache --workers 1"
    train = f"pretrain {root}/cache --out {root}/run --config {root}/tiny.json --device cpu"
    assert [cli.main(line.split()) for line in (prepare, train)] == [0, 0]
    return root


@pytest.fixture(autouse=True, scope="module")
def _rough_pictures():
    """Pictures have their own tests; here they only have to be there."""
    savefig = Figure.savefig

    def rough(figure, *args, **options):
        figure.set_layout_engine("none")
        savefig(figure, *args, **options | {"dpi": 50})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", rough)
        yield


@pytest.fixture
def fail(monkeypatch):
    """Let the command info end in an error."""

    def replace(error):
        def command(path=""):
            raise error

        monkeypatch.setitem(cli.COMMANDS, "info", command)

    return replace


# --- help ---


HELP = """
import sys
from patchifier import cli
for command in sys.argv[1:]:
    try:
        assert not cli.main([*command.split(), "--help"])
    except SystemExit as end:
        assert not end.code
    assert "torch" not in sys.modules, command
"""


def test_help_does_not_import_torch(child_environment):
    commands = ["", "prepare", "pretrain", "finetune", "demo", "report", "reconstruct", "info"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *commands],
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: patchifier") == len(commands)


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_all_commands_are_listed_by_group(line, run):
    shown = run(line)
    assert shown.err == ""
    blocks = [block.splitlines() for block in shown.out.split("\n\n") if ":\n  " in block]
    listed = {title.removesuffix(":"): [row.split()[0] for row in rows] for title, *rows in blocks}
    assert listed == {
        title: [command.__name__ for command in group] for title, group in cli.GROUPS.items()
    }
    assert all(len(row) <= 100 and row.endswith(".") for _, *rows in blocks for row in rows)


@pytest.mark.parametrize("title", cli.GROUPS)
def test_a_group_is_a_file(title):
    assert {command.__module__ for command in cli.GROUPS[title]} == {f"patchifier.cli.{title}"}


def test_an_interruption_inside_a_destructor_is_not_lost(monkeypatch, capsys):
    class Destroyed:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work(words: list[str]) -> int:
        Destroyed()
        last_s = time.monotonic() + 5
        while time.monotonic() < last_s:
            pass
        return 0

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "_run", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker may ignore it
    try:
        assert cli.main(["embed"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("\ninterrupted")


def test_a_thread_that_cannot_write_is_said_in_a_line(monkeypatch, capsys):
    def work(words: list[str]) -> int:
        def write() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "_run", work)
    assert cli.main(["embed"]) == 0
    said = "a log cannot be written (No space left on device): it is incomplete."
    assert capsys.readouterr().err.splitlines() == [said]


def test_a_mistyped_command_suggests_the_nearest(run):
    shown = run("embd Music", code=2)
    assert shown.out == ""
    said = "patchifier: there is no command 'embd': did you mean 'embed'?"
    assert shown.err.startswith(said)
    run("qqqq", code=2)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_describes_every_flag_and_no_function(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert not re.search("lambda|function|<|0x", capsys.readouterr().out)
    assert all(action.help for action in parser(cli.COMMANDS[command])._actions)


def test_every_config_field_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    flat = " ".join(capsys.readouterr().out.split())
    flags = "pretrain.mask_ratio pretrain.stage_two.learning_rate model.channels"
    for flag in [*flags.split(), "augment.intensity_per"]:
        assert f"--{flag}" in flat
    assert "Share of patch vectors that are masked" in flat


# --- prepare ---


def test_prepare_names_what_it_skips_and_returns_one(tmp_path, run, processes):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "good.wav", np.zeros(22_050), 22_050)
    (tmp_path / "in" / "bad.mp3").write_text("this is text")
    shown = run(f"prepare {tmp_path}/in --out {tmp_path}/cache --workers 1 --json", code=1)
    assert json.loads(shown.out)["skipped"] == 1
    assert "bad.mp3" in shown.err
    assert "bad.mp3" in (tmp_path / "cache" / "skipped.csv").read_text()


def test_a_name_that_is_not_utf8_costs_only_itself(folder, tmp_path, capsys):
    here, model = os.fsencode(tmp_path), folder / "run" / "model"
    shutil.copy(folder / "0.wav", tmp_path / "good.wav")
    bad = shutil.copy(folder / "0.wav", os.path.join(here, b"bad\xff.wav"))
    caches = os.path.join(here, b"cache\xff")  # this name is printed

    def command(*arguments, given=b""):
        words = [sys.executable, "-m", "patchifier", *arguments, "--workers", "1"]
        done = subprocess.run(words, input=given, capture_output=True)
        assert done.returncode == 1, done.stderr
        return done

    done = command("prepare", tmp_path, "--out", caches)
    assert NO_UTF8.encode() in done.stderr
    assert b"1 clip, " in done.stdout
    with open(os.path.join(caches, b"skipped.csv"), encoding="utf-8") as stream:
        assert r"bad\xff.wav" in stream.read()
    given = os.fsencode(tmp_path / "good.wav") + b"\n" + bad + b"\n"
    table = str(tmp_path / "x.parquet")
    done = command("embed", "-", "--model", model, "--out", table, given=given)
    assert NO_UTF8.encode() in done.stderr
    name = os.fsdecode(bad)
    for arguments in (
        ["embed", name, "--out", "y.npy"],
        ["similar", table, "--to", name],
        ["reconstruct", name, "--out", "p.png"],
    ):
        assert cli.main([*arguments, "--model", str(model)]) == 2
        assert NO_UTF8 in capsys.readouterr().err


def test_a_manifest_without_targets_says_which_columns_it_has(folder, tmp_path, run):
    (folder / "genres.csv").write_text("path,genre\n0.wav,tone\n1.wav,noise\n")
    shown = run(f"prepare {folder}/genres.csv --out {tmp_path}/cache --workers 1")
    assert "no targets: of the columns genre none is called 'target' or 'label'" in shown.out


def test_a_recipe_goes_by_its_name_anywhere(folder, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(f"prepare {folder}/clips.csv --out cache --config self-supervised --workers 1")
    assert cache.Cache("cache").spectrogram.n_pitch_bands == 216
    shown = run(f"prepare {folder}/clips.csv --out other --config self-supervise", code=2)
    assert "Did you mean 'self-supervised'?" in shown.err
    shown = run(f"prepare {folder}/clips.csv --out old --config base --workers 1")
    assert "the recipe 'base' is now 'self-supervised'" in shown.err
    assert cache.Cache("old").spectrogram.n_pitch_bands == 216


def test_prepare_makes_the_log_mels_that_a_model_reads(bundled, folder, tmp_path, run):
    held = checkpoint.load("patchifier-base")
    other = update(held.config, {"spectrogram": {"n_fft": 1024}})
    checkpoint.save(bundled / "patchifier-base", checkpoint.Checkpoint(held.model, other))
    prepare = f"prepare {folder}/clips.csv --out {tmp_path}/cache --model patchifier-base"
    run(f"{prepare} --workers 1")
    assert cache.Cache(tmp_path / "cache").spectrogram == other.spectrogram
    tune = f"finetune patchifier-base {folder}/cache --out {tmp_path}/tuned --device cpu"
    assert "patchifier prepare --model" in run(tune, code=2).err
    assert "--model and --config" in run(f"{prepare} --config {folder}/tiny.json", code=2).err


# --- pretrain and finetune ---


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"pretrain": {"mask_ratoi": 0.5}}', "pretrain.mask_ratoi.*mask_ratio"),
        ('{"spectrogram": {"n_fft": 1024}}', "n_fft is 2048, not 1024"),
    ],
)
def test_a_config_with_a_mistake_is_exit_code_two(config, said, folder, tmp_path, run):
    (tmp_path / "bad.json").write_text(config)
    command = f"pretrain {folder}/cache --out {tmp_path}/run --config {tmp_path}/bad.json"
    assert re.search(said, run(command, code=2).err, re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_a_cache_from_other_settings_is_exit_code_two(folder, run):
    command = f"prepare {folder}/clips.csv --out {folder}/cache --spectrogram.n_fft 1024"
    assert "n_fft is 2048, not 1024" in run(command, code=2).err


def test_a_runs_own_config_is_valid_for_config(folder, tmp_path, run):
    own = folder / "run" / "config.json"
    run(f"pretrain {folder}/cache --out {tmp_path}/again --config {own} --device cpu")
    assert (tmp_path / "again" / "config.json").read_text() == own.read_text()


def test_flags_win_over_the_config_file(folder, tmp_path, run):
    command = f"pretrain {folder}/cache --out {tmp_path}/run --config {folder}/tiny.json"
    run(f"{command} --pretrain.mask_ratio 0.5 --stage two --device cpu")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["pretrain"]
    assert (settings["mask_ratio"], settings["stages"], settings["n_patches"]) == (0.5, "two", 8)
    assert not (tmp_path / "run" / "stage-one").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            "",
            "stage I: 2 steps of 4 clips, 0.5 passes; stage II: 2 steps of 4 clips, 0.5 passes",
        ),
        (
            "--stage one --pretrain.stage_one.steps 0",
            "stage I: 4,000 steps of 4 clips, 1,000 passes (as in the paper; a recipe such as "
            "--config self-supervised takes fewer)",
        ),
    ],
)
def test_steps_and_passes_are_said_before_training(
    changes, said, folder, tmp_path, run, monkeypatch
):
    monkeypatch.setattr("patchifier.train.pretrain.train_stage", lambda *args, **options: None)
    command = f"pretrain {folder}/cache --out {tmp_path}/run --config {folder}/tiny.json"
    shown = run(f"{command} --device cpu --pretrain.precision 32 {changes}")
    assert shown.err.splitlines()[0] == f"16 training clips; {said}"


@pytest.mark.parametrize("command", ["pretrain", "finetune {}/run/model"])
def test_a_device_that_is_not_there_is_refused_and_nothing_is_written(
    command, folder, tmp_path, run, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = f"{folder}/cache --out {tmp_path}/run --config {folder}/tiny.json --device cuda"
    shown = run(f"{command.format(folder)} {words}", code=2)
    assert "cannot use 1 device 'cuda'" in shown.err
    assert not list(tmp_path.iterdir())


def test_init_continues_from_weights(folder, tmp_path, told):
    start = folder / "run" / "model"
    command = f"pretrain {folder}/cache --out {tmp_path}/run --init {start} --device cpu"
    assert told(f"{command} --config {start}/config.json")["state"] == "finished"
    first, scratch = (
        (root / "run" / "stage-one" / "validation.csv").read_text().splitlines()[1]
        for root in (tmp_path, folder)
    )
    assert first != scratch


def test_finetune_all_reports_and_info(folder, tmp_path, run, told):
    command = f"finetune {folder}/run/model {folder}/cache --out {tmp_path}/tuned --method all"
    rows = told(f"{command} --config {folder}/tiny.json --device cpu")["rows"]
    assert [(row["encoder"], row["method"]) for row in rows] == [
        ("run", "linear-probe"),
        ("run", "freeze-extractor"),
        ("run", "freeze-bottleneck"),
        ("run", "full"),
        ("majority", "none"),
        ("mel-stats", "logistic"),
        ("random", "linear-probe"),
    ]
    assert len({row["n"] for row in rows}) == 1
    assert rows[5]["value"] == 1.0  # tones and noise are told apart by their mean spectrum
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows)
    (found,) = json.loads((tmp_path / "tuned" / "controls" / "differences.json").read_text())
    assert (found["first"], found["second"]) == ("run, linear-probe", "random, linear-probe")
    assert found["value"] == pytest.approx(rows[0]["value"] - rows[6]["value"])
    assert told(f"info {tmp_path}/tuned/full/model")["names"] == ["noise", "tone"]
    run(f"report {tmp_path}/tuned {folder}/run --out {tmp_path}/page")
    assert (tmp_path / "page" / "index.html").stat().st_size > 10_000


def test_a_model_of_mel_bands_is_tuned_with_its_controls_on_a_cache_with_pitch_bands(
    folder, tmp_path, run, told
):
    bands = "--spectrogram.n_pitch_bands 84"
    run(f"prepare {folder}/clips.csv --out {tmp_path}/pitched --workers 1 {bands}")
    tune = f"finetune {folder}/run/model {{}} --out {tmp_path}/{{}} --method linear-probe"
    both = [
        told(f"{tune.format(*names)} --config {folder}/tiny.json --device cpu")["rows"]
        for names in ((f"{tmp_path}/pitched", "one"), (f"{folder}/cache", "two"))
    ]
    assert [row["encoder"] for row in both[0]] == ["run", "majority", "mel-stats", "random"]
    assert [row["value"] for row in both[0]] == [row["value"] for row in both[1]]


def test_fine_tuning_says_first_what_its_settings_are_and_where_from(folder, tmp_path, run):
    model = folder / "run" / "model"
    tune = f"finetune {model} {folder}/cache --device cpu --method linear-probe --out {tmp_path}"
    said = run(f"{tune}/own").err.splitlines()[0]
    assert said.startswith(f"settings of {model}/config.json: learning rate 0.001 (constant); ")
    assert "batches of 4; 4 steps" in said
    said = run(f"{tune}/flag --finetune.training.steps 2").err.splitlines()[0]
    assert "config.json, changed by flags: " in said
    assert "; 2 steps; " in said
    run(f"report {tmp_path}/own --out {tmp_path}/page")
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert (
        "<dt>fine-tuning: clips</dt><dd>learning rate 0.001 (constant); batches of 4; 4 steps"
        in page
    )


def test_where_the_controls_fail_the_rows_are_shown_and_the_run_is_not_finished(
    folder, tmp_path, run, monkeypatch
):
    from patchifier.evaluate import controls

    def fail(*args, **options):
        raise ValueError("no such luck")

    tune = f"finetune {folder}/run/model {folder}/cache --out {tmp_path}/tuned --device cpu"
    tune += f" --config {folder}/tiny.json --method linear-probe"
    with monkeypatch.context() as patch:
        patch.setattr(controls, "_random_weights", fail)
        shown = run(tune, code=3)
    assert "linear-probe" in shown.err
    facts = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert facts["state"] == "failed"
    run(f"report {tmp_path}/tuned --out {tmp_path}/page")
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "it failed: controls: ValueError: no such luck" in page
    assert "without freeze-extractor" not in page  # it was not asked for
    shown = run(f"{tune} --resume")
    assert (shown.out.count("95 % interval"), shown.err.count("95 % interval")) == (1, 0)
    facts = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert (facts["state"], "error" in facts) == ("finished", False)


def test_a_row_that_learnt_nothing_and_equal_predictions_have_no_interval():
    row = {"encoder": "mine", "method": "full", "metric": "accuracy", "value": 0.5, "n": 9}
    row |= {"low": 0.5, "high": 0.5, "learnt_nothing": "every clip is called jazz"}
    text = cli.evaluate.results_table([row])
    assert "[0.500, 0.500]" not in text
    assert "mine, full: learnt nothing: every clip is called jazz." in text
    assert "--finetune.learning_rates" in text
    row = {"first": "a", "second": "b", "value": 0.0, "low": 0.0, "high": 0.0, "p_holm": 1.0}
    results = {"rows": [], "dataset": "x", "protocol": "linear", "split": "its own"}
    results |= {"differences": [row | {"equal_predictions": True}]}
    assert cli.evaluate.comparison_text(results).endswith("a - b: +0.000, equal predictions")


def test_a_difference_of_0_in_every_group_is_told_in_words():
    row = {"first": "a", "second": "b", "value": 0.0, "low": -0.074, "high": 0.074, "p_holm": 1.0}
    results = {"rows": [], "dataset": "x", "protocol": "linear", "split": "its own"}
    for agree in (True, False):
        found = row | {"agree": agree}
        text = cli.evaluate.comparison_text(results | {"differences": [found]})
        assert "a - b: +0.000 [-0.074, +0.074]" in text
        assert ("no group of clips differs" in text) == agree
        shown = interval_text(found, "accuracy", signed=True)
        assert ("no group of clips differs" in shown) == agree


def test_finetuning_and_further_training_start_from_a_model_by_its_name(
    bundled, folder, tmp_path, run, told
):
    tune = f"finetune patchifier-paper {folder}/cache --out {tmp_path}/tuned --device cpu"
    rows = told(f"{tune} --method linear-probe --finetune.training.steps 4")["rows"]
    assert rows[0]["method"] == "linear-probe"
    stages = [
        f"--pretrain.stage_{stage}.{what}"
        for stage in ("one", "two")
        for what in ("steps 2", "batch_size 4")
    ]
    more = f"pretrain {folder}/cache --out {tmp_path}/more --init patchifier-paper --device cpu"
    run(f"{more} --pretrain.n_patches 8 {' '.join(stages)}")


def test_a_folder_that_is_no_model_is_told_by_what_it_is(folder, run):
    model = folder / "run" / "model"
    (folder / "empty").mkdir()
    prepare = f"prepare {folder}/clips.csv --out {folder}/never --model"
    assert "is not a model folder" in run(f"{prepare} {folder}/empty", code=2).err
    (folder / "begun").mkdir()
    for file in ("config.json", "run.json"):
        shutil.copy(folder / "run" / file, folder / "begun" / file)
    assert "It is a run without a model yet" in run(f"info {folder}/begun", code=2).err
    assert "It is a cache" in run(f"{prepare} {folder}/cache", code=2).err
    tune = f"finetune {folder}/cache {model} --out {folder}/never"
    assert "It is a cache: where a command takes both, the model" in run(tune, code=2).err
    draw = f"reconstruct {folder}/0.wav --model {folder}/run --out {folder}/never.png"
    assert f"Did you mean {model}?" in run(draw, code=2).err


@pytest.mark.parametrize(
    "command",
    [
        "prepare {folder}/clips.csv --out {out}",
        "pretrain {folder}/cache --config {folder}/tiny.json --device cpu --out {out}",
        "finetune {folder}/run/model {folder}/cache --device cpu --out {out}",
        "compare {folder}/cache --encoders mel-stats --out {out}",
        "report {folder}/run --out {out}",
        "export {folder}/run/model --hf {out}",
    ],
)
@pytest.mark.parametrize("place", ["taken.csv", "taken.csv/inside"])
def test_a_file_where_a_folder_is_written_is_refused(command, place, folder, tmp_path, run):
    (tmp_path / "taken.csv").write_text("mine")
    said = run(command.format(folder=folder, out=tmp_path / place), code=2).err
    assert str(tmp_path / "taken.csv") in said
    assert "file" in said
    assert (tmp_path / "taken.csv").read_text() == "mine"


@pytest.mark.parametrize("place", ["taken.csv", "taken.csv/inside", "others", "run", "tuned"])
def test_a_place_that_does_not_fit_is_refused_before_encoders_are_made(
    place, folder, tmp_path, run, monkeypatch
):
    (tmp_path / "taken.csv").touch()
    for file, kind in (("others/file", ""), ("run/run.json", "compare"), ("tuned/run.json", "t")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps({"kind": kind, "cache": "elsewhere"}))
    monkeypatch.setattr(evaluate.encoders, "encoders_of", None)  # a call would raise
    assert "--out" in run(f"compare {folder}/cache --out {tmp_path / place}", code=2).err


@pytest.mark.parametrize("command", ["compare {} --out x", "leaks {0} {0}", "pretrain {} --out x"])
def test_a_manifest_in_place_of_a_cache_is_told_with_the_command_that_makes_one(
    command, folder, run
):
    said = run(command.format(folder / "clips.csv"), code=2).err
    assert f"patchifier prepare {folder / 'clips.csv'} --out CACHE" in said


# --- info and leaks ---


def test_leaks_of_a_model_says_which_cache_is_wanted(tmp_path, run):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    for model, said in {
        "patchifier-base": r"patchifier-base comes without the music it was trained on, expected a "
        r"cache of that: its card, \S+README.md, lists it",
        tmp_path / "model": "is a model, expected the cache it was trained on",
    }.items():
        assert re.search(said, run(f"leaks {model} {tmp_path}", code=2).err)


def test_info_counts_parameters_and_verifies_caches(folder, told):
    facts = told(f"info {folder}/run/model")
    parts = [value for name, value in facts.items() if name.startswith("parameters_")]
    assert facts["parameters"] == sum(parts)
    facts = told(f"info {folder}/cache --verify")
    assert (facts["clips"], facts["problems"]) == (20, [])


def test_info_names_the_shards_of_each_part_of_a_cache(folder, run):
    shards = sorted(path.name for path in (folder / "cache" / "shards").glob("*.npy"))
    assert f"part 0                {shards}" in run(f"info {folder}/cache --parts 1").out
    said = run(f"info {folder}/cache --parts 5", code=2).err
    assert "cannot be dealt out to 5 parts" in said


def test_info_finds_damage_in_a_cache(tmp_path, told):
    soundfile.write(tmp_path / "a.wav", np.zeros(22_050), 22_050)
    cache.prepare(datasets.load(tmp_path), tmp_path / "cache", workers=1)
    shard = tmp_path / "cache" / "shards" / "00000.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    (problem,) = told(f"info {tmp_path}/cache --verify", code=1)["problems"]
    assert "a.wav" in problem


def test_info_lists_the_models_of_the_package(bundled, run, told):
    rows = told("info")
    assert [(row["name"], row["size"], row["hours"], row["date"]) for row in rows] == [
        ("patchifier-base", 64, 1.5, "2026-01-02"),
        ("patchifier-paper", 32, 2.5, "2026-01-02"),
    ]
    line = rf"patchifier-paper +32 +{rows[1]['parameters']:,} +2.5 +2026-01-02"
    assert re.search(line, run("info").out)
    facts = told("info patchifier-paper")
    assert (facts["size"], facts["hours"], facts["parameters"]) == (32, 2.5, rows[1]["parameters"])
    assert facts["card"] == str(bundled / "patchifier-paper" / "README.md")
    said = run("info patchifier-pape", code=2).err
    assert "did you mean 'patchifier-paper'?" in said


def test_a_model_that_is_missing_from_the_package_is_named_with_what_to_do(
    folder, tmp_path, run, monkeypatch
):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    shown = run(f"reconstruct {folder}/0.wav --out {tmp_path}/p.png", code=2)
    assert "patchifier-paper is missing" in shown.err
    assert "--model" in shown.err
    assert "no models are in this copy" in run("info").out


# --- reconstruct and compare ---


def test_reconstruct_draws_and_can_be_heard(folder, tmp_path, run, told):
    command = f"reconstruct {folder}/0.wav --model {folder}/run/model --out {tmp_path}/p.png"
    found = told(f"{command} --sound")
    ratios = ["0.25", "0.5", "0.75", "0.9"]
    assert list(found["masked_mse"]) == list(found["references"]) == ratios
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    sounds = {f"p_reconstructed_{ratio}.wav" for ratio in ratios}
    assert {path.name for path in tmp_path.glob("*.wav")} == {"p_original.wav"} | sounds
    assert soundfile.info(tmp_path / "p_original.wav").duration > 5
    said = run(command).out.splitlines()
    assert said[0].startswith(f"{tmp_path}/p.png: MSE of masked patches in (dB/100)^2")
    behind = sum(
        found["masked_mse"][ratio] > min(found["references"][ratio].values()) for ratio in ratios
    )
    assert behind  # a model of two steps
    assert said.pop() == (
        f"lower is better; the model is behind the best reference at {behind} of 4 ratios; one "
        "clip says little"
    )
    lines = [line for line in said if "ratio" in line]
    for line, ratio in zip(lines, ratios, strict=True):
        assert f"{ratio} " in line
        assert f"model {found['masked_mse'][ratio]:.5f}" in line
        references = found["references"][ratio]
        assert set(references) == {"visible_mean", "interpolation", "shrunk_interpolation"}
        for name, value in references.items():
            assert f"{name.replace('_', ' ')} {value:.5f}" in line
            assert value > 0


def test_the_verdict_on_a_reconstruction_is_by_the_best_reference_of_each_ratio():
    verdict = cli.evaluate._verdict
    references = {"0.5": {"a": 2.0, "b": 1.0}, "0.9": {"a": 1.0, "b": 2.0}, "0": {}}
    for error, said in (
        (0.5, "at least as good as every"),
        (1.5, "behind the best reference at 2"),
    ):
        (line,) = verdict(dict.fromkeys(references, error), references)
        assert said in line
    assert "at 1 of 2" in verdict({"0.5": 0.5, "0.9": 1.5, "0": 9.0}, references)[0]
    assert verdict({"0": 1.0}, {"0": {}}) == []


def test_several_differences_come_with_what_to_believe():
    row = {"first": "a", "second": "b", "value": 0.1, "low": 0.05, "high": 0.2, "p_holm": 0.1}
    results = {"rows": [], "dataset": "x", "protocol": "linear", "split": "its own"}
    for count in (1, 2):
        text = cli.evaluate.comparison_text(results | {"differences": [row] * count})
        assert ("p (Holm) is below 0.05" in text) == (count > 1)


def test_a_second_job_in_the_same_place_is_refused(folder, tmp_path, run):
    model, song = folder / "run" / "model", folder / "0.wav"
    commands = {
        f"report {folder}/run --out {tmp_path}": folder_lock(tmp_path, "x"),
        f"reconstruct {song} --model {model} --out {tmp_path}/p.png": file_lock(
            tmp_path / "p.png", "x"
        ),
        f"export {model} --onnx {tmp_path}/m.onnx": file_lock(tmp_path / "m.onnx", "x"),
    }
    for command, lock in commands.items():
        with lock:
            assert f"another {command.split()[0]} is w" in run(command, code=2).err
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_more_positions_than_it_was_trained_with_reconstructs_what_it_was(
    tmp_path, noise, run
):
    sizes = {**SIZES, "embed_dim": 16, "mlp_dim": 16, "max_patches": 9}
    config = update(Config(), {"model": sizes, "pretrain": {"n_patches": 4}})
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(Patchifier(config), config))
    soundfile.write(tmp_path / "long.wav", noise(8.0), 22_050)
    model = tmp_path / "model"
    shown = run(f"reconstruct {tmp_path}/long.wav --model {model} --out {tmp_path}/p.png")
    assert shown.err == ""


def test_reconstruct_draws_with_the_papers_model(bundled, folder, tmp_path, told):
    command = f"reconstruct {folder}/0.wav --out {tmp_path}/p.png"
    none, paper, base = (
        told(f"{command} {flags}")["masked_mse"]
        for flags in ("", "--model patchifier-paper", "--model patchifier-base")
    )
    assert none == paper != base


def test_a_model_with_a_predictor_draws_by_torch(folder, tmp_path, run, told):
    settings = TINY | {"model": TINY["model"] | {"n_predictor_layers": 1}}
    (tmp_path / "base.json").write_text(json.dumps(settings))
    run(f"pretrain {folder}/cache --out {tmp_path}/run --config {tmp_path}/base.json --device cpu")
    model = tmp_path / "run" / "model"
    assert not (model / "reconstruct.onnx").exists()
    found = told(f"reconstruct {folder}/0.wav --model {model} --out {tmp_path}/p.png")
    assert all(error > 0 for error in found["masked_mse"].values())
    encoder = embed.load(model)
    log_mel = encoder.log_mel(np.zeros(22_050 * 3), 22_050)
    with pytest.raises(RequestError, match="recipes demo, base-paper or paper"):
        encoder.reconstruct(log_mel, np.ones(2, bool))


def test_reconstruct_needs_no_torch(bundled, folder, tmp_path, child_environment):
    arguments = ["reconstruct", str(folder / "0.wav"), "--model", str(bundled / weights.PAPER)]
    arguments += ["--out", str(tmp_path / "p.png"), "--sound"]
    code = f"import sys; sys.modules['torch'] = None; from patchifier import cli; sys.exit(cli.main({arguments}))"
    subprocess.run([sys.executable, "-c", code], env=child_environment, check=True)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("*.wav"))) == 5


@pytest.mark.slow
def test_compare_judges_the_packages_model_beside_what_it_has_to_beat(
    bundled, folder, tmp_path, told
):
    results = told(f"compare {folder}/cache --out {tmp_path}/compared")
    expected = "majority patchifier-base random:patchifier-base mel-stats mfcc"
    assert [row["encoder"] for row in results["rows"]] == expected.split()
    assert {row["first"] for row in results["differences"]} == {"patchifier-base"}
    said = "random:patchifier-base: mean of 5 draws, random weights in the architecture of"
    assert f"{said} patchifier-base" in cli.evaluate.comparison_text(results)


# --- how commands end ---


@pytest.mark.parametrize(
    "line", ["info x", "pretrain x --out y", "report x --out y", "prepare x --out y"]
)
def test_what_does_not_exist_is_named(line, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    shown = run(line.replace(" x", " nowhere"), code=2)
    assert "nowhere" in shown.err
    assert not list(tmp_path.iterdir())


def test_a_report_without_one_of_its_runs_says_so_and_is_exit_code_one(folder, tmp_path, run):
    shown = run(f"report {folder}/run {tmp_path}/gone --out {tmp_path}/page", code=1)
    assert f"{tmp_path}/gone" in shown.err
    assert (tmp_path / "page" / "index.html").is_file()
    assert not run(f"report {folder}/run --out {tmp_path}/page").err.count("Nothing")


def test_folder_without_audio_is_exit_code_two(tmp_path, run):
    assert "no audio files" in run(f"prepare {tmp_path} --out {tmp_path}/cache", code=2).err


FULL = "the output cannot be written (No space left on device): choose another place, or make room"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("oops"), 3, "oops"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("stopped at step 7"), 130, "stopped at step 7"),
        (
            PermissionError(errno.EACCES, "Permission denied", "ro/x.parquet"),
            2,
            "ro/x.parquet cannot be read or written (Permission denied): choose another place",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, FULL),
        (OSError(errno.EMFILE, "Too many open files"), 2, "there are too few file handles: raise"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), 3, "fault of patchifier"),
        (MemoryError(), 2, "there is not enough memory"),
        (RuntimeError("[enforce fail] can't allocate memory: 9"), 2, "there is not enough memory"),
        (
            ModuleNotFoundError("No module named 'lightning_fabric.x'", name="lightning_fabric.x"),
            2,
            "pip install 'patchifier[train]'",
        ),
        (ModuleNotFoundError("No module", name="patchifier.gone"), 3, "a fault of"),
    ],
)
def test_an_error_has_its_exit_code_and_message(error, code, says, fail, run):
    fail(error)
    said = run("info", code).err
    assert says in said
    assert ("fault" in said, "Traceback" in said) == (code == 3, code == 3)


def test_an_interrupted_job_says_how_to_go_on(monkeypatch, run):
    def stopped(sources: list[str], *, out: str):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "embed", stopped)
    said = run("embed x --out y.parquet", code=130).err
    assert said.strip() == "interrupted: run the same command again, and it goes on"


@pytest.fixture
def clock(monkeypatch):
    """Let each look at the clock of progress be eleven seconds later."""
    times = itertools.count(0.0, 11.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(times))


def test_progress_in_a_pipe_is_plain_lines(capsys):
    show = progress("log-mels")
    for done in range(1, 4):
        show(done, 3, "")
    assert capsys.readouterr().err == "log-mels: 1 of 3\nlog-mels: 3 of 3\n"


def test_progress_in_a_pipe_begins_with_the_first_file(capsys):
    show = progress("files")
    show(0, 84, "")
    assert capsys.readouterr().err == "files: 0 of 84\n"
    show(8, 84, "1.3 files/s")
    assert capsys.readouterr().err == ""


def test_no_remaining_time_is_shown_before_something_is_done(clock, capsys):
    show = progress("log-mels")
    for done in (5, 5, 6, 10):
        show(done, 10, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["log-mels: 5 of 10"] * 2
    assert lines[2:] == ["log-mels: 6 of 10, 88 s left", "log-mels: 10 of 10"]


def test_parts_of_a_job_are_shown_in_per_cent_and_by_their_items(clock, capsys):
    steps = Steps(progress("mfcc"), 6)
    shown = steps.next("features", "clips")
    shown(7, 100, "")
    steps.finish()
    assert capsys.readouterr().err.splitlines() == [
        "mfcc: 1 %, features, 7 of 100 clips",
        "mfcc: 100 %",
    ]


def test_what_nobody_can_count_is_announced_and_shows_no_remaining_time(clock, capsys):
    show = progress("testing")
    for report in ((0, 0, "once a run"), (1, 0, "1 operation"), (2, 0, "2 operations")):
        show(*report)
    show(2, 2, "bf16")
    assert capsys.readouterr().err.splitlines() == [
        "testing: once a run",
        "testing: 2 operations",
        "testing: 2 of 2, bf16",
    ]


def test_a_bar_has_the_time_that_is_left_where_it_can_be_known(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show = progress("mfcc")
    show(0, 100, "")
    show(3, Hundredths(100), "features")
    show(100, Hundredths(100), "")
    show(1, 0, "1 operation")
    show(1, 1, "bf16")
    shown = capsys.readouterr().err
    assert "100 %" in shown
    assert "100/100" not in shown
    assert "1 operation" in shown


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("embed Music", "--out is missing"),
        ("embed --out x.parquet", "SOURCES is missing"),
        ("pretrain", "CACHE and --out are missing"),
        ("similar x.parquet", "--to is missing"),
        ("embed Music --worker 3", "there is no flag --worker: did you mean --workers?"),
        ("embed Music --out x.npy --workers -3", "--workers is -3, expected at least 0"),
        (
            "embed Music --out x.npy --zzz=3",
            "there is no flag --zzz: see 'patchifier embed --help'",
        ),
        (
            "pretrain c --out x --pretrain.mask_ratoi 0.5",
            "there is no flag --pretrain.mask_ratoi: did you mean --pretrain.mask_ratio?",
        ),
        (
            "pretrain c --out x --pretrain.seed x",
            "--pretrain.seed is 'x', expected a whole number.",
        ),
        ("prepare demo --out x --workers two", "--workers is 'two', expected a whole number."),
        (
            "pretrain c --out x --stage three",
            "--stage: invalid choice: 'three' (choose from 'one', 'two', 'both')",
        ),
        ("info x y", "unrecognized arguments: y"),
    ],
)
def test_a_wrong_command_line_is_one_message(line, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith(f"patchifier {line.split()[0]}: {says}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["info .", "similar . --to x", "similar / --to x", "duplicates .", "embed {music} --out .", "index x --out .",
     "predict . x --out a.csv", "export --onnx .", "export --onnx .."],
)  # fmt: skip
def test_places_without_a_name_are_refused_in_one_line(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").write_bytes(b"")
    words = line.format(music=tmp_path).split()
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_characters_that_steer_a_terminal_are_printed_as_escapes(capsys):
    cli._show("\x1b[2Ja\tb\n\x9b")
    assert capsys.readouterr().out == "\\x1b[2Ja\tb\n\\x9b\n"


def test_values_are_read_as_they_are_typed():
    words = ["-my song.mp3", "-", "--out=x.npy", "--window_s", "2", "--changed"]
    expected = {"sources": words[:2], "out": "x.npy", "window_s": 2.0, "changed": True}
    assert parse(cli.COMMANDS["embed"], words) == (expected, False)
    words = ["c", "--out", "x", "--json", "--config", "base", "--pretrain.stage_one.steps=3"]
    flags, as_json = parse(
        cli.COMMANDS["pretrain"], [*words, "--pretrain.objectives", "[mse, clip]"]
    )
    assert as_json
    changes = {"pretrain": {"stage_one": {"steps": 3}, "objectives": ("mse", "clip")}}
    assert flags.pop("changes") == Overrides("base", changes)
    assert flags == {"cache": "c", "out": "x"}


def test_every_extra_that_is_named_exists_and_brings_its_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = {"sklearn": "scikit-learn", "lightning_fabric": "lightning-fabric"}
    for package, extra in cli.EXTRAS.items():
        pattern = rf"{distributions.get(package, package)}\b"
        wanted = project["optional-dependencies"][extra]
        assert any(re.match(pattern, name) for name in wanted), package

"""Commands as a user meets them: exit codes, messages, --json, and no torch for --help."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import soundfile

from patchifier import cache, checkpoint, cli, datasets, weights
from patchifier.cli.command import Overrides, parse, parser
from patchifier.cli.progress import progress
from patchifier.config import Config, update
from patchifier.nn.model import Patchifier
from patchifier.train.run import Interrupted
from tests import ROOT

TINY = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 32,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 64,
        "max_patches": 8,
    },
    "pretrain": {
        "n_patches": 8,
        "validation_fraction": 0.2,
        "stage_one": {"steps": 2, "batch_size": 4},
        "stage_two": {"steps": 2, "batch_size": 4},
    },
    "finetune": {
        "validate_every": 2,
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.001},
    },
}


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
    assert (
        cli.main(
            ["prepare", str(root / "clips.csv"), "--out", str(root / "cache"), "--workers", "1"]
        )
        == 0
    )
    assert (
        cli.main(
            [
                "pretrain",
                str(root / "cache"),
                "--out",
                str(root / "run"),
                "--config",
                str(root / "tiny.json"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return root


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "command",
    [[], ["prepare"], ["pretrain"], ["finetune"], ["demo"], ["report"], ["reconstruct"], ["info"]],
)
def test_help_does_not_import_torch(command):
    code = f"import sys\nfrom patchifier import cli\ntry:\n cli.main({[*command, '--help']!r})\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: patchifier" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed_by_group(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    shown = [block.splitlines() for block in out.split("\n\n") if ":\n  " in block]
    assert {
        block[0].removesuffix(":"): [line.split()[0] for line in block[1:]] for block in shown
    } == {title: [command.__name__ for command in group] for title, group in cli.GROUPS.items()}
    assert all(len(line) <= 100 and line.endswith(".") for block in shown for line in block[1:])


@pytest.mark.parametrize("title", cli.GROUPS)
def test_a_group_is_a_file(title):
    assert {command.__module__ for command in cli.GROUPS[title]} == {f"patchifier.cli.{title}"}


def test_a_mistyped_command_suggests_the_nearest(capsys):
    code, out, err = run(capsys, "embd", "Music")
    assert (code, out) == (2, "")
    assert err.startswith("patchifier: there is no command 'embd': did you mean 'embed'?")
    assert run(capsys, "qqqq")[0] == 2


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_describes_every_flag_and_no_function(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert not re.search("lambda|function|<|0x", capsys.readouterr().out)
    assert all(action.help for action in parser(cli.COMMANDS[command])._actions)


def test_every_config_field_is_a_flag_with_its_help():
    code = "from patchifier import cli; cli.main(['pretrain', '--help'])"
    text = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    ).stdout
    flat = " ".join(text.split())
    for flag in (
        "--pretrain.mask_ratio",
        "--pretrain.stage_two.learning_rate",
        "--model.channels",
        "--augment.intensity_per",
    ):
        assert flag in flat
    assert "Share of patch vectors that are masked" in flat


def test_leaks_of_a_model_says_which_cache_is_wanted(tmp_path, capsys):
    code, _, err = run(capsys, "leaks", "patchifier-base", tmp_path)
    assert code == 2
    assert re.search(
        r"patchifier-base comes without the music it was trained on, expected a cache of that: its card, \S+README.md, lists it",
        err,
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    code, _, err = run(capsys, "leaks", tmp_path / "model", tmp_path)
    assert code == 2
    assert "is a model, expected the cache it was trained on" in err


def test_prepare_names_what_it_skips_and_returns_one(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "good.wav", np.zeros(22_050), 22_050)
    (tmp_path / "in" / "bad.mp3").write_text("this is text")
    code, out, err = run(
        capsys, "prepare", tmp_path / "in", "--out", tmp_path / "cache", "--workers", "1", "--json"
    )
    assert code == 1
    assert json.loads(out)["skipped"] == 1
    assert "bad.mp3" in err
    assert "bad.mp3" in (tmp_path / "cache" / "skipped.csv").read_text()


def test_a_name_that_is_not_utf8_costs_only_itself(folder, tmp_path, capsys):
    shutil.copy(folder / "0.wav", tmp_path / "good.wav")
    bad = shutil.copy(folder / "0.wav", os.path.join(os.fsencode(tmp_path), b"bad\xff.wav"))

    def command(*arguments, given=b""):
        return subprocess.run(
            [sys.executable, "-m", "patchifier", *arguments],
            input=given,
            capture_output=True,
            check=False,
        )

    done = command(
        "prepare",
        tmp_path,
        "--out",
        os.path.join(os.fsencode(tmp_path), b"cache\xff"),
        "--workers",
        "1",
    )  # this name is printed
    assert done.returncode == 1, done.stderr
    assert rb"bad\xff.wav: its name is not UTF-8: rename it" in done.stderr
    assert b"1 clip, " in done.stdout
    with open(
        os.path.join(os.fsencode(tmp_path), b"cache\xff", b"skipped.csv"), encoding="utf-8"
    ) as stream:
        assert r"bad\xff.wav" in stream.read()
    model = folder / "run" / "model"
    given = os.fsencode(tmp_path / "good.wav") + b"\n" + bad + b"\n"
    done = command(
        "embed",
        "-",
        "--model",
        model,
        "--out",
        tmp_path / "x.parquet",
        "--workers",
        "1",
        given=given,
    )
    assert done.returncode == 1, done.stderr
    assert rb"bad\xff.wav: its name is not UTF-8: rename it" in done.stdout
    for arguments in (
        ["embed", os.fsdecode(bad), "--out", "y.npy"],
        ["similar", tmp_path / "x.parquet", "--to", os.fsdecode(bad)],
        ["reconstruct", os.fsdecode(bad), "--out", "p.png"],
    ):
        code, _, err = run(capsys, *arguments, "--model", model)
        assert code == 2
        assert r"bad\xff.wav: its name is not UTF-8: rename it" in err


def test_folder_without_audio_is_exit_code_two(tmp_path, capsys):
    code, _, err = run(capsys, "prepare", tmp_path, "--out", tmp_path / "cache")
    assert code == 2
    assert "no audio files" in err


def test_misspelt_config_key_is_exit_code_two(folder, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"pretrain": {"mask_ratoi": 0.5}}')
    code, _, err = run(
        capsys,
        "pretrain",
        folder / "cache",
        "--out",
        tmp_path / "run",
        "--config",
        tmp_path / "bad.json",
    )
    assert code == 2
    assert "pretrain.mask_ratoi" in err
    assert "mask_ratio" in err
    assert not (tmp_path / "run").exists()


def test_cache_from_other_settings_is_exit_code_two(folder, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"spectrogram": {"n_fft": 1024}}')
    code, _, err = run(
        capsys,
        "pretrain",
        folder / "cache",
        "--out",
        tmp_path / "run",
        "--config",
        tmp_path / "other.json",
    )
    assert code == 2
    assert "n_fft is 2048, not 1024" in err
    code, _, err = run(
        capsys,
        "prepare",
        folder / "clips.csv",
        "--out",
        folder / "cache",
        "--spectrogram.n_fft",
        "1024",
    )
    assert code == 2
    assert "n_fft is 2048, not 1024" in err


def test_a_runs_own_config_is_valid_for_config(folder, tmp_path):
    code = cli.main(
        [
            "pretrain",
            str(folder / "cache"),
            "--out",
            str(tmp_path / "again"),
            "--config",
            str(folder / "run" / "config.json"),
            "--device",
            "cpu",
        ]
    )
    assert code == 0
    assert (tmp_path / "again" / "config.json").read_text() == (
        folder / "run" / "config.json"
    ).read_text()


def test_flags_win_over_the_config_file(folder, tmp_path):
    arguments = [
        "pretrain",
        folder / "cache",
        "--out",
        tmp_path / "run",
        "--config",
        folder / "tiny.json",
        "--pretrain.mask_ratio",
        "0.5",
        "--stage",
        "two",
        "--device",
        "cpu",
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["pretrain"]
    assert (settings["mask_ratio"], settings["stages"], settings["n_patches"]) == (0.5, "two", 8)
    assert not (tmp_path / "run" / "stage-one").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_device_that_is_not_there_is_refused_and_nothing_is_written(
    command, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = [folder / "run" / "model"] if command == "finetune" else []
    code, _, err = run(
        capsys,
        command,
        *model,
        folder / "cache",
        "--out",
        tmp_path / "run",
        "--config",
        folder / "tiny.json",
        "--device",
        "cuda",
    )
    assert code == 2
    assert "cannot use 1 device 'cuda'" in err
    assert not list(tmp_path.iterdir())


def test_init_continues_from_weights(folder, tmp_path, capsys):
    start = folder / "run" / "model"
    code, out, _ = run(
        capsys,
        "pretrain",
        folder / "cache",
        "--out",
        tmp_path / "run",
        "--init",
        start,
        "--config",
        start / "config.json",
        "--json",
        "--device",
        "cpu",
    )
    assert code == 0
    assert json.loads(out)["state"] == "finished"
    first = (tmp_path / "run" / "stage-one" / "validation.csv").read_text().splitlines()[1]
    scratch = (folder / "run" / "stage-one" / "validation.csv").read_text().splitlines()[1]
    assert first != scratch


def test_finetune_all_reports_and_info(folder, tmp_path, capsys):
    code, out, _ = run(
        capsys,
        "finetune",
        folder / "run" / "model",
        folder / "cache",
        "--out",
        tmp_path / "tuned",
        "--method",
        "all",
        "--json",
        "--config",
        folder / "tiny.json",
        "--device",
        "cpu",
    )
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [(row["encoder"], row["method"]) for row in rows] == [
        ("patchifier", "linear-probe"),
        ("patchifier", "freeze-extractor"),
        ("patchifier", "freeze-bottleneck"),
        ("patchifier", "full"),
        ("majority", "none"),
        ("mel-stats", "logistic"),
        ("random", "linear-probe"),
    ]
    assert len({row["n"] for row in rows}) == 1
    assert rows[5]["value"] == 1.0  # tones and noise are told apart by their mean spectrum
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows)
    code, out, _ = run(capsys, "info", tmp_path / "tuned" / "full" / "model", "--json")
    assert json.loads(out)["names"] == ["noise", "tone"]
    code, out, _ = run(
        capsys, "report", tmp_path / "tuned", folder / "run", "--out", tmp_path / "page", "--json"
    )
    assert code == 0
    assert (tmp_path / "page" / "index.html").stat().st_size > 10_000


def test_info_counts_parameters_and_verifies_caches(folder, capsys):
    code, out, _ = run(capsys, "info", folder / "run" / "model", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == sum(
        value for name, value in facts.items() if name.startswith("parameters_")
    )
    code, out, _ = run(capsys, "info", folder / "cache", "--json", "--verify")
    assert (code, json.loads(out)["clips"], json.loads(out)["problems"]) == (0, 20, [])


def test_info_names_the_shards_of_each_part_of_a_cache(folder, capsys):
    code, out, _ = run(capsys, "info", folder / "cache", "--parts", "1")
    assert code == 0
    assert "part 0                ['00000.npy']" in out
    code, _, errors = run(capsys, "info", folder / "cache", "--parts", "5")
    assert code == 2
    assert "cannot be dealt out to 5 parts" in errors


def test_info_finds_damage_in_a_cache(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(22_050), 22_050)
    cache.prepare(datasets.load(tmp_path), tmp_path / "cache", workers=1)
    shard = tmp_path / "cache" / "shards" / "00000.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    code, out, _ = run(capsys, "info", tmp_path / "cache", "--verify", "--json")
    assert code == 1
    assert "a.wav" in json.loads(out)["problems"][0]


def test_reconstruct_draws_and_can_be_heard(folder, tmp_path, capsys):
    code, out, _ = run(
        capsys,
        "reconstruct",
        folder / "0.wav",
        "--model",
        folder / "run" / "model",
        "--out",
        tmp_path / "p.png",
        "--sound",
        "--json",
    )
    assert code == 0
    assert (
        set(json.loads(out)["masked_mse"])
        == set(json.loads(out)["references"])
        == {"0.25", "0.5", "0.75", "0.9"}
    )
    assert all(
        set(row) == {"visible_mean", "interpolation", "shrunk_interpolation"}
        for row in json.loads(out)["references"].values()
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.glob("*.wav")} == {"p_original.wav"} | {
        f"p_reconstructed_{ratio}.wav" for ratio in (0.25, 0.5, 0.75, 0.9)
    }
    assert soundfile.info(tmp_path / "p_original.wav").duration > 5


def test_reconstruct_tells_the_references_beside_every_error(folder, tmp_path, capsys):
    asked = (
        "reconstruct",
        folder / "0.wav",
        "--model",
        folder / "run" / "model",
        "--out",
        tmp_path / "p.png",
    )
    found = json.loads(run(capsys, *asked, "--json")[1])
    lines = [line for line in run(capsys, *asked)[1].splitlines() if "ratio" in line]
    assert len(lines) == 4
    for line, ratio in zip(lines, found["masked_mse"], strict=True):
        assert f"{ratio} " in line
        assert f"model {found['masked_mse'][ratio]:.5f}" in line
        for name, value in found["references"][ratio].items():
            assert f"{name.replace('_', ' ')} {value:.5f}" in line
            assert value > 0


def test_a_model_with_more_positions_than_it_was_trained_with_reconstructs_what_it_was(
    tmp_path, noise, capsys
):
    sizes = {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "mlp_dim": 16,
        "max_patches": 9,
    }
    config = update(Config(), {"model": sizes, "pretrain": {"n_patches": 4}})
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(Patchifier(config), config))
    soundfile.write(tmp_path / "long.wav", noise(8.0), 22_050)
    code, _, err = run(
        capsys,
        "reconstruct",
        tmp_path / "long.wav",
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "p.png",
    )
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "nowhere"],
        ["pretrain", "nowhere", "--out", "x"],
        ["report", "nowhere", "--out", "x"],
        ["prepare", "nowhere", "--out", "x"],
    ],
)
def test_what_does_not_exist_is_named(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "nowhere" in err
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_missing_from_the_package_is_named_with_what_to_do(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    code, _, err = run(capsys, "reconstruct", folder / "0.wav", "--out", tmp_path / "p.png")
    assert code == 2
    assert "patchifier-paper is missing" in err
    assert "--model" in err
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "no models are in this copy" in out


def test_info_lists_the_models_of_the_package(bundled, capsys):
    code, out, _ = run(capsys, "info", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["name"], row["size"], row["hours"], row["date"]) for row in rows] == [
        ("patchifier-base", 64, 1.5, "2026-01-02"),
        ("patchifier-paper", 32, 2.5, "2026-01-02"),
    ]
    code, out, _ = run(capsys, "info")
    assert re.search(rf"patchifier-paper +32 +{rows[1]['parameters']:,} +2.5 +2026-01-02", out)
    code, out, _ = run(capsys, "info", "patchifier-paper", "--json")
    facts = json.loads(out)
    assert (facts["size"], facts["hours"], facts["parameters"]) == (32, 2.5, rows[1]["parameters"])
    assert facts["card"] == str(bundled / "patchifier-paper" / "README.md")
    code, _, err = run(capsys, "info", "patchifier-pape")
    assert code == 2
    assert "did you mean 'patchifier-paper'?" in err


def test_reconstruct_draws_with_the_papers_model(bundled, folder, tmp_path, capsys):
    asked = ("reconstruct", folder / "0.wav", "--json", "--out")
    drawn = {name: json.loads(run(capsys, *asked, tmp_path / f"{name}.png", *flags)[1])["masked_mse"] for name, flags in {
        "none": [], "paper": ["--model", "patchifier-paper"], "base": ["--model", "patchifier-base"],
    }.items()}  # fmt: skip
    assert drawn["none"] == drawn["paper"] != drawn["base"]


def test_compare_judges_the_packages_model_beside_what_it_has_to_beat(
    bundled, folder, tmp_path, capsys
):
    code, out, _ = run(
        capsys, "compare", folder / "cache", "--out", tmp_path / "compared", "--json"
    )
    assert code == 0
    results = json.loads(out)
    assert [row["encoder"] for row in results["rows"]] == [
        "majority",
        "patchifier-base",
        "random:patchifier-base",
        "mel-stats",
        "mfcc",
    ]
    assert {row["first"] for row in results["differences"]} == {"patchifier-base"}


def test_prepare_makes_the_log_mels_that_a_model_reads(bundled, folder, tmp_path, capsys):
    held = checkpoint.load("patchifier-base")
    other = update(held.config, {"spectrogram": {"n_fft": 1024}})
    checkpoint.save(bundled / "patchifier-base", checkpoint.Checkpoint(held.model, other))
    out = tmp_path / "cache"
    assert (
        run(
            capsys,
            "prepare",
            folder / "clips.csv",
            "--out",
            out,
            "--model",
            "patchifier-base",
            "--workers",
            "1",
        )[0]
        == 0
    )
    assert cache.Cache(out).spectrogram == other.spectrogram
    code, _, err = run(
        capsys,
        "finetune",
        "patchifier-base",
        folder / "cache",
        "--out",
        tmp_path / "tuned",
        "--device",
        "cpu",
    )
    assert code == 2
    assert "patchifier prepare --model" in err
    code, _, err = run(
        capsys,
        "prepare",
        folder / "clips.csv",
        "--out",
        out,
        "--model",
        "patchifier-base",
        "--config",
        folder / "tiny.json",
    )
    assert code == 2
    assert "--model and --config" in err


def test_finetuning_and_further_training_start_from_a_model_by_its_name(
    bundled, folder, tmp_path, capsys
):
    tuned = (
        "finetune",
        "patchifier-paper",
        folder / "cache",
        "--out",
        tmp_path / "tuned",
        "--method",
        "linear-probe",
        "--json",
    )
    code, out, _ = run(capsys, *tuned, "--finetune.training.steps", "4", "--device", "cpu")
    assert code == 0
    assert json.loads(out)["rows"][0]["method"] == "linear-probe"
    steps = (
        "--pretrain.stage_one.steps",
        "2",
        "--pretrain.stage_two.steps",
        "2",
        "--pretrain.stage_one.batch_size",
        "4",
        "--pretrain.stage_two.batch_size",
        "4",
    )
    more = (
        "pretrain",
        folder / "cache",
        "--out",
        tmp_path / "more",
        "--init",
        "patchifier-paper",
        "--pretrain.n_patches",
        "8",
        *steps,
        "--device",
        "cpu",
    )
    assert run(capsys, *more)[0] == 0


def test_an_unexpected_failure_is_exit_code_three(monkeypatch, capsys):
    def fail(path: str = ""):
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    code, _, err = run(capsys, "info", "x")
    assert code == 3
    assert "oops" in err


@pytest.mark.parametrize(
    ("error", "says"),
    [(KeyboardInterrupt(), "interrupted"), (Interrupted("stopped at step 7"), "stopped at step 7")],
)
def test_an_interrupted_command_is_exit_code_130(error, says, monkeypatch, capsys):
    def stopped():
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", stopped)
    code, _, err = run(capsys, "info")
    assert code == 130
    assert says in err
    assert "fault" not in err


def test_an_interrupted_job_says_how_to_go_on(monkeypatch, capsys):
    def stopped(sources: list[str], *, out: str):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "embed", stopped)
    code, _, err = run(capsys, "embed", "x", "--out", "y.parquet")
    assert (code, err.strip()) == (130, "interrupted: run the same command again, and it goes on")


def test_progress_in_a_pipe_is_plain_lines(capsys):
    show = progress("log-mels")
    for done in range(1, 4):
        show(done, 3, "")
    err = capsys.readouterr().err
    assert err == "log-mels: 3 of 3, 0 s left\n"


# --- places that cannot be written ---


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "ro/x.parquet"),
            "ro/x.parquet cannot be read or written (Permission denied): choose another place",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the output cannot be written (No space left on device): choose another place, or make room",
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_no_fault_of_ours(error, says, capsys, monkeypatch):
    def refused():
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", refused)
    code, _, err = run(capsys, "info")
    assert (code, "Traceback" in err) == (2, False)
    assert says in err


def test_another_error_of_the_system_is_a_fault(capsys, monkeypatch):
    def lost():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "gone")

    monkeypatch.setitem(cli.COMMANDS, "info", lost)
    code, _, err = run(capsys, "info")
    assert code == 3
    assert "fault of patchifier" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "Music"], "patchifier embed: --out is missing"),
        (["embed", "--out", "x.parquet"], "patchifier embed: SOURCES is missing"),
        (["pretrain"], "patchifier pretrain: CACHE and --out are missing"),
        (["export"], "patchifier export: --onnx is missing"),
        (["similar", "x.parquet"], "patchifier similar: --to is missing"),
        (
            ["embed", "Music", "--worker", "3"],
            "patchifier embed: there is no flag --worker: did you mean --workers?",
        ),
        (
            ["embed", "Music", "--out", "x.npy", "--workers", "-3"],
            "patchifier embed: --workers is -3, expected at least 0",
        ),
        (
            ["embed", "Music", "--out", "x.npy", "--zzz=3"],
            "patchifier embed: there is no flag --zzz: see 'patchifier embed --help'",
        ),
        (
            ["pretrain", "c", "--out", "x", "--pretrain.mask_ratoi", "0.5"],
            "patchifier pretrain: there is no flag --pretrain.mask_ratoi: did you mean --pretrain.mask_ratio?",
        ),
        (
            ["pretrain", "c", "--out", "x", "--pretrain.seed", "x"],
            "patchifier pretrain: --pretrain.seed is 'x', expected a whole number.",
        ),
        (
            ["prepare", "demo", "--out", "x", "--workers", "two"],
            "patchifier prepare: --workers is 'two', expected a whole number.",
        ),
        (
            ["pretrain", "c", "--out", "x", "--stage", "three"],
            "patchifier pretrain: --stage: invalid choice: 'three' (choose from 'one', 'two', 'both')",
        ),
        (["info", "x", "y"], "patchifier info: unrecognized arguments: y"),
    ],
)
def test_a_wrong_command_line_is_one_message(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith(says)
    assert len(said.splitlines()) == 1


def test_a_misspelt_recipe_is_refused_with_the_nearest_one(tmp_path, capsys):
    words = ["prepare", "demo", "--out", str(tmp_path / "cache"), "--config", "bsae"]
    assert cli.main(words) == 2
    assert "Did you mean 'base'?" in capsys.readouterr().err


def test_values_are_read_as_they_are_typed():
    words = ["-my song.mp3", "-", "--out=x.npy", "--window_s", "2", "--changed"]
    assert parse(cli.COMMANDS["embed"], words) == (
        {"sources": words[:2], "out": "x.npy", "window_s": 2.0, "changed": True},
        False,
    )
    words = ["c", "--out", "x", "--json", "--config", "base", "--pretrain.stage_one.steps=3"]
    flags, as_json = parse(
        cli.COMMANDS["pretrain"], [*words, "--pretrain.objectives", "[mse, clip]"]
    )
    assert as_json
    assert flags.pop("changes") == Overrides(
        "base", {"pretrain": {"stage_one": {"steps": 3}, "objectives": ("mse", "clip")}}
    )
    assert flags == {"cache": "c", "out": "x"}


@pytest.mark.parametrize(
    ("package", "code", "says"),
    [
        ("lightning_fabric.x", 2, "pip install 'patchifier[train]'"),
        ("patchifier.gone", 3, "a fault of"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_with_the_command_that_brings_it(
    package, code, says, capsys, monkeypatch
):
    def fail(path: str = ""):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    assert cli.main(["info"]) == code
    assert says in capsys.readouterr().err


def test_every_extra_that_is_named_exists_and_brings_its_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    distributions = {"sklearn": "scikit-learn", "lightning_fabric": "lightning-fabric"}
    for package, extra in cli.EXTRAS.items():
        assert any(
            re.match(rf"{distributions.get(package, package)}\b", wanted)
            for wanted in extras[extra]
        ), package


def test_a_recipe_goes_by_its_name_anywhere(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(
            [
                "prepare",
                str(folder / "clips.csv"),
                "--out",
                "cache",
                "--config",
                "base",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert cache.Cache("cache").spectrogram.n_pitch_bands == 216
    assert (
        cli.main(["prepare", str(folder / "clips.csv"), "--out", "other", "--config", "bass"]) == 2
    )
    assert "expected a file, or a recipe's name" in capsys.readouterr().err


def test_a_manifest_without_targets_says_which_columns_it_has(folder, tmp_path, capsys):
    (folder / "genres.csv").write_text("path,genre\n0.wav,tone\n1.wav,noise\n")
    assert (
        cli.main(
            [
                "prepare",
                str(folder / "genres.csv"),
                "--out",
                str(tmp_path / "cache"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert (
        "no targets: of the columns genre none is called 'target' or 'label'"
        in capsys.readouterr().out
    )


def test_a_folder_that_is_no_model_is_told_by_what_it_is(folder, capsys):
    assert (
        cli.main(
            [
                "finetune",
                str(folder / "cache"),
                str(folder / "run" / "model"),
                "--out",
                str(folder / "never"),
            ]
        )
        == 2
    )
    assert (
        "It is a cache: where a command takes both, the model comes first."
        in capsys.readouterr().err
    )
    assert (
        cli.main(
            [
                "reconstruct",
                str(folder / "0.wav"),
                "--model",
                str(folder / "run"),
                "--out",
                str(folder / "never.png"),
            ]
        )
        == 2
    )
    assert f"Did you mean {folder / 'run' / 'model'}?" in capsys.readouterr().err

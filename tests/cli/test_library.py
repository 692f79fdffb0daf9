"""From a folder of music to vectors, neighbours, distances and answers, from the command line alone."""

import csv
import io
import json

import pytest
import torch
from pyarrow import parquet

import patchifier
from patchifier import audio, checkpoint, cli
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, update
from patchifier.integrations import onnx
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task

TINY = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 32,
    }
}


def run(capsys, *arguments, code=0) -> str:
    """What a command prints; where it fails as it should, what it says."""
    found = cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert found == code, shown.err
    return shown.err if code == 2 else shown.out


@pytest.fixture(scope="module")
def home(tmp_path_factory, tone, noise):
    """Six songs in two folders, a model, one with a head, and the table of all songs."""
    root = tmp_path_factory.mktemp("vectors")
    for name, wave in {
        "a/low": tone(200, seconds=3), "a/lower": tone(190, seconds=3), "a/high": tone(3000, seconds=3),
        "b/noise": noise(3.0), "b/more noise": noise(3.0, seed=1), "b/higher": tone(3100, seconds=3),
    }.items():  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        audio.save(root / f"{name}.wav", wave)
    config = update(Config(), TINY)
    torch.manual_seed(0)
    made = Patchifier(config, seed=0)
    checkpoint.save(root / "model", Checkpoint(made, config))
    checkpoint.save(root / "other", Checkpoint(Patchifier(config, seed=1), config))
    checkpoint.save(
        root / "tuned", Checkpoint(made, config, Head(16, 2), Task("one-of", ("calm", "loud")))
    )
    assert (
        cli.main(
            [
                "embed",
                str(root / "a"),
                str(root / "b"),
                "--model",
                str(root / "model"),
                "--out",
                str(root / "all.parquet"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    return root


def test_a_library_is_embedded_and_kept(home, capsys):
    table = parquet.read_table(home / "all.parquet")
    assert table.column_names[:4] == ["path", "start_s", "end_s", "embedding"]
    assert len(table) == 6
    again = json.loads(
        run(
            capsys,
            "embed",
            home / "a",
            home / "b",
            "--model",
            home / "model",
            "--out",
            home / "all.parquet",
            "--json",
        )
    )
    assert (again["embedded"], again["kept"]) == (0, 6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "ray", "--changed"], "--changed is for the table of one machine"),
        (["--engine", "ray", "--out", "vectors.npy"], "expected with --engine ray NAME.parquet"),
        (["--address", "auto"], "add --engine ray"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(flags, said, home, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in run(
        capsys,
        "embed",
        home / "a",
        "--model",
        home / "model",
        "--out",
        "vectors.parquet",
        *flags,
        code=2,
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ray_gives_the_same_table(home, capsys, tmp_path):
    told = json.loads(
        run(
            capsys,
            "embed",
            home / "a",
            home / "b",
            "--model",
            home / "model",
            "--out",
            tmp_path / "x.parquet",
            "--engine",
            "ray",
            "--json",
        )
    )
    assert (told["rows"], told["kept"], told["skipped"]) == (6, 0, [])
    ours, rays = (
        parquet.read_table(home / "all.parquet").to_pydict(),
        parquet.read_table(tmp_path / "x.parquet").to_pydict(),
    )
    assert torch.allclose(
        torch.tensor(ours.pop("embedding")), torch.tensor(rays.pop("embedding")), atol=1e-5
    )
    assert ours == rays


def test_paths_come_from_standard_input(home, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"{home / 'a' / 'low.wav'}\n\n{home / 'b' / 'noise.wav'}\n")
    )
    told = json.loads(
        run(
            capsys,
            "embed",
            "-",
            "--model",
            home / "model",
            "--out",
            tmp_path / "two.parquet",
            "--workers",
            "1",
            "--json",
        )
    )
    assert told["rows"] == 2


def test_neighbours_of_a_file_in_the_table_and_outside(home, capsys, tmp_path, tone):
    inside = json.loads(
        run(
            capsys,
            "similar",
            home / "all.parquet",
            "--to",
            home / "a" / "low.wav",
            "--count",
            "5",
            "--json",
        )
    )
    assert len(inside) == 5
    assert inside[0]["path"].endswith("lower.wav")
    audio.save(tmp_path / "new.wav", tone(195, seconds=3))
    outside = json.loads(
        run(
            capsys,
            "similar",
            home / "all.parquet",
            "--to",
            tmp_path / "new.wav",
            "--model",
            home / "model",
            "--count",
            "2",
            "--json",
        )
    )
    assert {row["path"].rpartition("/")[2] for row in outside} == {"low.wav", "lower.wav"}
    assert "another model" in run(
        capsys,
        "similar",
        home / "all.parquet",
        "--to",
        tmp_path / "new.wav",
        "--model",
        home / "other",
        code=2,
    )


def test_an_index_answers_as_the_table_does(home, capsys):
    run(capsys, "index", home / "all.parquet", "--out", home / "index")
    asked = ("--to", home / "b" / "noise.wav", "--count", "3", "--json")
    by_table, by_index = (
        json.loads(run(capsys, "similar", home / name, *asked)) for name in ("all.parquet", "index")
    )
    assert [row["path"] for row in by_index] == [row["path"] for row in by_table]
    told = json.loads(run(capsys, "index", home / "all.parquet", "--out", home / "index", "--json"))
    assert told["kept"] == 6


def test_playlists_filters_and_duplicates(home, capsys, monkeypatch):
    walk = json.loads(
        run(
            capsys,
            "similar",
            home / "all.parquet",
            "--to",
            home / "a" / "low.wav",
            "--playlist",
            "--count",
            "4",
            "--json",
        )
    )
    assert len({row["path"] for row in walk}) == 4
    below = json.loads(
        run(
            capsys,
            "similar",
            home / "all.parquet",
            "--to",
            home / "a" / "low.wav",
            "--below",
            f"{(home / 'b').resolve()}/",
            "--json",
        )
    )
    assert {row["path"].rpartition("/")[2] for row in below} == {
        "noise.wav",
        "more noise.wav",
        "higher.wav",
    }
    monkeypatch.chdir(home)
    assert (
        json.loads(
            run(capsys, "similar", "all.parquet", "--to", "a/low.wav", "--below", "b", "--json")
        )
        == below
    )


def test_duplicates_are_listed_by_their_cosine(home, capsys):
    all_pairs = json.loads(
        run(capsys, "duplicates", home / "all.parquet", "--threshold", "0.01", "--json")
    )
    assert all_pairs
    in_b = (
        "duplicates",
        home / "all.parquet",
        "--threshold",
        "0.01",
        "--below",
        home / "b",
        "--json",
    )
    assert 0 < len(json.loads(run(capsys, *in_b))) < len(all_pairs)
    assert "no two files reach 1.0." in run(
        capsys, "duplicates", home / "all.parquet", "--threshold", "1.0"
    )
    assert "expected a cosine above 0" in run(
        capsys, "duplicates", home / "all.parquet", "--threshold", "0", code=2
    )


@pytest.mark.parametrize("flag", [["--duplicates", "0.01"], ["--duplicates=0.01"]])
def test_an_old_flag_is_accepted_and_names_the_new_one(flag, home, capsys):
    new = run(capsys, "duplicates", home / "all.parquet", "--threshold", "0.01", "--json")
    assert cli.main(["similar", str(home / "all.parquet"), *flag, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.out == new
    assert shown.err == "patchifier: 'similar --duplicates' is now 'duplicates --threshold'.\n"


@pytest.mark.parametrize("flag", ["--to", "--count", "--playlist", "--exact", "--model"])
def test_flags_about_one_file_are_refused_beside_duplicates(flag, home, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["similar", str(home / "all.parquet"), "--duplicates", "0.99", flag, "3"])
    assert stopped.value.code == 2
    assert f"there is no flag {flag}" in capsys.readouterr().err


def test_distances_say_what_is_missing(home, capsys, tmp_path):
    assert "needs 10" in run(capsys, "distance", home / "all.parquet", home / "all.parquet", code=2)
    seconds = tmp_path / "seconds.parquet"
    run(
        capsys,
        "embed",
        home / "a",
        home / "b",
        "--model",
        home / "model",
        "--out",
        seconds,
        "--window_s",
        "1",
        "--workers",
        "1",
    )
    few = json.loads(run(capsys, "distance", seconds, seconds, "--json"))
    assert few["frechet"] is None
    assert few["rows"] == [24, 24]
    assert abs(few["kernel"]) < 3 * few["kernel_deviation"] + 0.5
    assert "no Frechet distance" in run(capsys, "distance", seconds, seconds)


def test_answers_of_a_tuned_model(home, capsys, tmp_path):
    run(capsys, "predict", home / "tuned", home / "a", "--out", tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as stream:
        assert {row["label"] for row in csv.DictReader(stream)} <= {"calm", "loud"}
    run(
        capsys,
        "predict",
        home / "tuned",
        home / "a",
        "--out",
        tmp_path / "curve.jsonl",
        "--window_s",
        "1",
    )
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) >= 9
    assert "no head" in run(
        capsys, "predict", home / "model", home / "a", "--out", tmp_path / "x.csv", code=2
    )


def test_without_a_model_it_is_that_of_the_package(home, bundled, capsys, tmp_path, tone):
    table = tmp_path / "x.parquet"
    told = json.loads(run(capsys, "embed", home / "a", "--out", table, "--workers", "1", "--json"))
    assert told["rows"] == 3
    (first, *_) = parquet.read_table(table).to_pydict()["embedding"]
    assert torch.allclose(
        torch.tensor(first),
        torch.from_numpy(patchifier.load().embed(home / "a" / "high.wav")),
        atol=1e-5,
    )
    audio.save(tmp_path / "new.wav", tone(195, seconds=3))
    (nearest,) = json.loads(
        run(capsys, "similar", table, "--to", tmp_path / "new.wav", "--count", "1", "--json")
    )
    assert nearest["path"].rpartition("/")[2] in ("low.wav", "lower.wav")
    assert "patchifier-base is another model" in run(
        capsys, "similar", home / "all.parquet", "--to", tmp_path / "new.wav", code=2
    )
    assert "no head" in run(
        capsys, "predict", "patchifier-base", home / "a", "--out", tmp_path / "x.csv", code=2
    )


def test_export_takes_the_model_of_the_package_or_one_by_name(
    bundled, capsys, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(onnx, "export", lambda model, path: asked.append(model) or tmp_path)
    run(capsys, "export", "--onnx", tmp_path / "x.onnx")
    run(capsys, "export", "patchifier-paper", "--onnx", tmp_path / "x.onnx")
    assert asked == [None, "patchifier-paper"]

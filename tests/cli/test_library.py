"""From a folder of music to vectors, neighbours, distances and answers, by the command line."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from pyarrow import parquet

import patchifier
from patchifier import audio, checkpoint, cli
from patchifier.checkpoint import Checkpoint
from patchifier.integrations import onnx
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from tests import small

pytestmark = pytest.mark.usefixtures("thread_pool")


@pytest.fixture(scope="module")
def home(tmp_path_factory, tone, noise):
    """Six songs in two folders, a model, one with a head, and the table of all songs."""
    root = tmp_path_factory.mktemp("vectors")
    for name, wave in {
        "a/low": tone(200, seconds=3),
        "a/lower": tone(190, seconds=3),
        "a/high": tone(3000, seconds=3),
        "b/noise": noise(3.0),
        "b/more noise": noise(3.0, seed=1),
        "b/higher": tone(3100, seconds=3),
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        audio.save(root / f"{name}.wav", wave)
    config = small.config()
    made, other = (Patchifier(config, seed=seed) for seed in (0, 1))
    checkpoint.save(root / "model", Checkpoint(made, config))
    checkpoint.save(root / "other", Checkpoint(other, config))
    tuned = Checkpoint(made, config, Head(16, 2), Task("one-of", ("calm", "loud")))
    checkpoint.save(root / "tuned", tuned)
    command = f"embed {root}/a {root}/b --model {root}/model --out {root}/all.parquet --workers 1"
    assert cli.main(command.split()) == 0
    return root


@pytest.fixture
def new_song(tmp_path, tone):
    audio.save(tmp_path / "new.wav", tone(195, seconds=3))
    return tmp_path / "new.wav"


def names(rows):
    return [row["path"].rpartition("/")[2] for row in rows]


def test_a_library_is_embedded_and_kept(home, told):
    table = parquet.read_table(home / "all.parquet")
    assert table.column_names[:4] == ["path", "start_s", "end_s", "embedding"]
    assert len(table) == 6
    command = f"embed {home}/a {home}/b --model {home}/model --out {home}/all.parquet"
    again = told(command)
    assert (again["embedded"], again["kept"]) == (0, 6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--engine ray --changed", "--changed is for the table of one machine"),
        ("--engine ray --out vectors.npy", "expected with --engine ray NAME.parquet"),
        ("--address auto", "add --engine ray"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(flags, said, home, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"embed {home}/a --model {home}/model --out vectors.parquet {flags}"
    assert said in run(command, code=2).err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ray_gives_the_same_table(home, told, tmp_path):
    out = tmp_path / "x.parquet"
    command = f"embed {home}/a {home}/b --model {home}/model --out {out} --engine ray"
    shown = told(command)
    assert (shown["rows"], shown["kept"], shown["skipped"]) == (6, 0, [])
    ours, rays = (parquet.read_table(path).to_pydict() for path in (home / "all.parquet", out))
    np.testing.assert_allclose(ours.pop("embedding"), rays.pop("embedding"), atol=1e-5)
    assert ours == rays


def test_paths_come_from_standard_input(home, told, monkeypatch, tmp_path, processes):
    given = f"{home}/a/low.wav\n\n{home}/b/noise.wav\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    out = tmp_path / "two.parquet"
    assert told(f"embed - --model {home}/model --out {out} --workers 1")["rows"] == 2


def test_neighbours_of_a_file_in_the_table_and_outside(home, run, told, new_song):
    inside = told(f"similar {home}/all.parquet --to {home}/a/low.wav --count 5")
    assert len(inside) == 5
    assert names(inside)[0] == "lower.wav"
    command = f"similar {home}/all.parquet --to {new_song} --model {home}"
    assert {*names(told(f"{command}/model --count 2"))} == {"low.wav", "lower.wav"}
    assert "another model" in run(f"{command}/other", code=2).err


def test_an_index_answers_as_the_table_does(home, run, told):
    run(f"index {home}/all.parquet --out {home}/index")
    query = f"--to {home}/b/noise.wav --count 3"
    by_table, by_index = (
        told(f"similar {home}/{name} {query}") for name in ("all.parquet", "index")
    )
    assert names(by_index) == names(by_table)
    assert told(f"index {home}/all.parquet --out {home}/index")["kept"] == 6


def test_a_damaged_index_is_made_again(home, told):
    command = f"index {home}/all.parquet --out {home}/damaged"
    told(command)
    (data,) = (home / "damaged").rglob("data/*.lance")
    data.write_bytes(data.read_bytes()[:100])
    assert told(command)["built"] is True
    assert told(command)["kept"] == 6


def test_filters_by_folder(home, told, monkeypatch):
    monkeypatch.chdir(home)
    for folder in ("b", f"{(home / 'b').resolve()}/"):
        below = told(f"similar all.parquet --to a/low.wav --below {folder}")
        assert {*names(below)} == {"noise.wav", "more noise.wav", "higher.wav"}


def test_several_files_to_search_with_and_some_that_are_not_meant(home, told, new_song):
    command = f"similar {home}/all.parquet --to {home}/a/low.wav --to {home}/a/lower.wav"
    command += f" --to {new_song} --model {home}/model"
    assert len(told(command)) == 4
    assert "noise.wav" not in names(told(f"{command} --not {home}/b/noise.wav"))


def test_a_search_that_contradicts_itself_is_refused(home, run):
    table, low, noise = f"{home}/all.parquet", f"{home}/a/low.wav", f"{home}/b/noise.wav"
    for words, said in (
        (f"similar {table} --to {low} --to {noise} --not {noise}", "should not"),
        (f"mix {table} --seeds {low} --not {low}", "should not"),
        (f"path {table} --from {low} --to {low}", "twice"),
    ):
        assert said in run(words, code=2).err


def test_a_path_leads_from_one_file_to_another(home, told, monkeypatch):
    monkeypatch.chdir(home)
    command = "path all.parquet --from a/low.wav --to a/high.wav"
    found = names(told(f"{command} --via a/lower.wav --count 4"))
    assert (found[0], found[-1], len({*found})) == ("low.wav", "high.wav", 4)
    assert "lower.wav" in found[1:-1]


def test_a_path_is_held_by_the_files_nearest_to_files_outside(home, run, new_song, tmp_path):
    copy = tmp_path / "copy.wav"
    shutil.copy(home / "a" / "high.wav", copy)
    model = f"--model {home}/model"
    shown = run(f"path {home}/all.parquet --from {copy} --to {home}/b/noise.wav --count 2 {model}")
    lines = [line.split("/")[-1] for line in shown.out.splitlines()]
    assert lines == ["high.wav", "noise.wav"]
    high = (home / "a" / "high.wav").resolve()
    assert f"{copy} is not in the table: the path begins at {high} (1.00)" in shown.err
    shown = run(f"path {home}/all.parquet --from noise.wav --via {copy} --to {new_song} {model}")
    assert f"the path leads through {high} (1.00)" in shown.err
    assert re.search(r"new.wav is not in the table: the path ends at .*low(er)?.wav \(", shown.err)


def test_a_file_is_known_by_its_name_and_one_that_is_nowhere_is_refused(home, run, told):
    whole = told(f"similar {home}/all.parquet --to {home}/b/noise.wav")
    assert told(f"similar {home}/all.parquet --to noise.wav") == whole
    assert "more noise" in run(f"similar {home}/all.parquet --to nois", code=2).err
    assert "nowhere" in run(f"similar {home}/all.parquet --to nowhere", code=2).err


def test_a_mix_begins_with_its_seeds(home, told, monkeypatch):
    monkeypatch.chdir(home)
    found = names(told("mix all.parquet --seeds b/noise.wav a/low.wav --count 5 --drift 0.2"))
    assert found[:2] == ["noise.wav", "low.wav"]
    assert len({*found}) == 5


def test_the_old_flag_for_a_playlist_works_and_names_the_new_command(home, run, monkeypatch):
    monkeypatch.chdir(home)
    done = run("similar --to a/low.wav all.parquet --playlist --count 4")
    assert "mix --seeds" in done.err
    assert done.out.splitlines()[0].split()[1].endswith("a/low.wav")
    assert len(done.out.splitlines()) == 4


def test_results_are_written_as_a_playlist_and_as_a_table(home, told, tmp_path):
    command = f"similar {home}/all.parquet --to {home}/a/low.wav --count 3"
    listed = names(told(f"{command} --m3u {tmp_path}/x.m3u8 --out {tmp_path}/x.csv"))
    told(f"{command} --out {tmp_path}/x.jsonl")
    lines = (tmp_path / "x.m3u8").read_text().splitlines()
    assert lines[1].startswith("#EXTINF:3,")
    assert [line.rpartition("/")[2] for line in lines[2::2]] == listed
    with (tmp_path / "x.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert names(rows) == listed
    with (tmp_path / "x.jsonl").open() as stream:
        assert [json.loads(line)["path"] for line in stream] == [row["path"] for row in rows]


@pytest.mark.parametrize("flags", ["--m3u song.mp3", "--out song.mp3"])
def test_a_result_does_not_replace_a_song(flags, home, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(f"similar {home}/all.parquet --to {home}/a/low.wav {flags}", code=2)
    assert not list(tmp_path.iterdir())


def test_weights_of_slices(home, run, told):
    command = f"similar {home}/all.parquet --to {home}/a/low.wav --model {home}/model --weights"
    assert len(told(f"{command} layers=2")) == 5
    assert "layers" in run(f"{command} harmony=2", code=2).err
    assert "NAME=FACTOR" in run(f"{command} layers", code=2).err


def test_info_describes_a_table(home, run, told):
    facts = told(f"info {home}/all.parquet")
    table = patchifier.library.read(home / "all.parquet")
    assert (facts["rows"], facts["files"], facts["size"]) == (6, 6, table.length)
    assert facts["hours"] == pytest.approx(float(table.length_s.sum()) / 3600, abs=5e-4)
    assert facts["model"] == table.metadata["model"]
    assert facts["name"] is None
    assert set(facts["columns"]) == set(table.rows.column_names)
    shown = run(f"info {home}/all.parquet").out
    assert re.search(r"^column start_s +start of the row in the file, in seconds$", shown, re.M)
    assert facts["window_s"] is facts["hop_s"] is None
    assert not re.search(r"^(window|hop) s", shown, re.M)


def test_info_names_a_model_of_the_package_and_counts_a_file_once(
    bundled, home, run, told, tmp_path
):
    run(f"embed {home}/a --out {tmp_path}/w.npy --window_s 0.5")
    facts = told(f"info {tmp_path}/w.npy")
    assert (facts["name"], facts["files"], facts["window_s"]) == ("patchifier-base", 3, 0.5)
    table = patchifier.library.read(tmp_path / "w.npy")
    lengths = dict(zip(table.paths, table.length_s, strict=True))
    assert facts["rows"] == len(table) > 3
    assert facts["hours"] == pytest.approx(sum(lengths.values()) / 3600, abs=5e-4)


def test_a_table_is_written_as_csv(bundled, home, run, tmp_path):
    out = tmp_path / "x.csv"
    run(f"embed {home}/a --out {out} --window_s 0.5")
    table = patchifier.library.read(tmp_path / "x.parquet")
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    numbers = [f"embedding_{number}" for number in range(table.length)]
    assert list(rows[0]) == ["path", "start_s", "end_s", *numbers]
    assert tuple(row["path"] for row in rows) == table.paths
    found = np.array([[row[name] for name in numbers] for row in rows], np.float32)
    np.testing.assert_array_equal(found, table.vectors)
    assert [float(row["end_s"]) for row in rows] == table.end_s.tolist()
    out.unlink()
    assert "0 embedded now" in run(f"embed {home}/a --out {out} --window_s 0.5").out
    assert out.exists()
    out.write_text("mine\n")
    said = run(f"embed {home}/a --out {out} --window_s 0.5", code=2).err
    assert "holds something else" in said
    assert out.read_text() == "mine\n"


def test_duplicates_are_listed_by_their_cosine(home, run, told):
    command = f"duplicates {home}/all.parquet --unchecked --threshold"
    all_pairs = told(f"{command} 0.01")
    assert 0 < len(told(f"{command} 0.01 --below {home}/b")) < len(all_pairs)
    shown, nearest = run(f"{command} 1.0").out, all_pairs[0]
    assert "no two files reach 1.0." in shown
    paths = f"{nearest['first']['path']} and {nearest['second']['path']}"
    assert f"The nearest are {paths}, with a cosine of {nearest['score']:.4f}" in shown
    lower = re.search(r"--threshold ([\d.]+) lists them", shown)[1]
    assert nearest in told(f"{command} {lower}")
    assert "expected a cosine above 0" in run(f"{command} 2", code=2).err


def test_duplicates_are_confirmed_by_their_files(home, run, told, tmp_path):
    for name in ("low", "lower"):
        shutil.copy(home / "a" / f"{name}.wav", tmp_path / f"{name}.wav")
        shutil.copy(home / "a" / f"{name}.wav", tmp_path / f"{name} copy.wav")
    run(f"embed {tmp_path} --model {home}/model --out {tmp_path}/x.parquet --workers 1")
    command = f"duplicates {tmp_path}/x.parquet --workers 1 --out {tmp_path}/x.csv"
    (tmp_path / "low copy.wav").unlink()
    kinds = {row["kind"] for row in json.loads(run(f"{command} --json", code=1).out)}
    assert "not checked" in kinds
    with (tmp_path / "x.csv").open(newline="") as stream:
        assert {row["kind"] for row in csv.DictReader(stream)} == kinds


@pytest.mark.parametrize("flag", ["--duplicates 0.01", "--duplicates=0.01"])
def test_an_old_flag_is_accepted_and_names_the_new_one(flag, home, run):
    new = run(f"duplicates {home}/all.parquet --threshold 0.01 --json").out
    shown = run(f"similar {home}/all.parquet {flag} --json")
    assert shown.out == new
    notice = "patchifier: 'similar --duplicates' is now 'duplicates --threshold'."
    assert shown.err.splitlines()[0] == notice


@pytest.mark.parametrize("flag", ["--to", "--count", "--playlist", "--exact", "--model"])
def test_flags_about_one_file_are_refused_beside_duplicates(flag, home, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["similar", str(home / "all.parquet"), "--duplicates", "0.99", flag, "3"])
    assert stopped.value.code == 2
    assert f"there is no flag {flag}" in capsys.readouterr().err


def test_distances_say_what_is_missing(home, run, told, tmp_path):
    assert "needs 10" in run(f"distance {home}/all.parquet {home}/all.parquet", code=2).err
    seconds = tmp_path / "seconds.parquet"
    embed = f"embed {home}/a {home}/b --model {home}/model --out {seconds}"
    run(f"{embed} --window_s 1 --workers 1")
    few = told(f"distance {seconds} {seconds}")
    assert few["frechet"] is None
    assert few["rows"] == [24, 24]
    assert abs(few["kernel"]) < 3 * few["kernel_deviation"] + 0.5
    assert "no Frechet distance" in run(f"distance {seconds} {seconds}").out


def test_answers_of_a_tuned_model(home, run, tmp_path, processes):
    run(f"predict {home}/tuned {home}/a --out {tmp_path}/answers.csv")
    rows = csv.DictReader((tmp_path / "answers.csv").read_text().splitlines())
    assert {row["label"] for row in rows} <= {"calm", "loud"}
    run(f"predict {home}/tuned {home}/a --out {tmp_path}/curve.jsonl --window_s 1")
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) >= 9
    shown = run(f"predict {home}/model {home}/a --out {tmp_path}/x.csv", code=2)
    assert "no head" in shown.err


def test_without_a_model_it_is_that_of_the_package(home, bundled, run, told, tmp_path, new_song):
    table = tmp_path / "x.parquet"
    assert told(f"embed {home}/a --out {table} --workers 1")["rows"] == 3
    (first, *_) = parquet.read_table(table).to_pydict()["embedding"]
    np.testing.assert_allclose(first, patchifier.load().embed(home / "a/high.wav"), atol=1e-5)
    (nearest,) = names(told(f"similar {table} --to {new_song} --count 1"))
    assert nearest in ("low.wav", "lower.wav")
    other = f"similar {home}/all.parquet --to {new_song}"
    assert "patchifier-base is another model" in run(other, code=2).err
    said = run(f"similar {table} --to {new_song} --model patchifier-paper", code=2).err
    assert "was made by patchifier-base: add --model patchifier-base" in said
    headless = f"predict patchifier-base {home}/a --out {tmp_path}/x.csv"
    assert "no head" in run(headless, code=2).err


def test_export_takes_the_model_of_the_package_or_one_by_name(bundled, run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(onnx, "export", lambda model, path: asked.append(model) or tmp_path)
    run(f"export --onnx {tmp_path}/x.onnx")
    run(f"export patchifier-paper --onnx {tmp_path}/x.onnx")
    assert asked == [None, "patchifier-paper"]
    (bundled / "patchifier-base" / "graph.onnx").unlink()
    run("export --graphs")
    assert (bundled / "patchifier-base" / "graph.onnx").is_file()


def test_export_writes_a_folder_for_transformers(bundled, run, tmp_path):
    told = run(f"export patchifier-paper --hf {tmp_path}/new").out
    assert f"AutoModel.from_pretrained('{tmp_path}/new', trust_remote_code=True)" in told
    assert (tmp_path / "new" / "modeling_patchifier.py").is_file()
    new = patchifier.load(tmp_path / "new")
    assert new.identity == patchifier.load("patchifier-paper").identity


def test_export_adds_the_graphs_that_a_model_folder_lacks(home, told, tmp_path):
    model, song = tmp_path / "model", home / "a" / "high.wav"
    shutil.copytree(home / "model", model)
    graphs = [model / "graph.onnx", model / "reconstruct.onnx"]
    for path in graphs:
        path.unlink()
    by_torch = patchifier.load(model)
    found = told(f"export {model} --graphs")
    assert found["graphs"] == list(map(str, graphs))
    assert found["bytes"] == sum(path.stat().st_size for path in graphs)
    by_graph = patchifier.load(model)
    assert type(by_graph.network) is not type(by_torch.network)
    assert by_graph.identity == by_torch.identity
    np.testing.assert_allclose(by_graph.embed(song), by_torch.embed(song), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        ("", "none is given"),
        ("--graphs --onnx x.onnx", "--onnx and --graphs are given"),
        ("--onnx x.onnx --hf x", "--onnx and --hf are given"),
    ],
)
def test_export_needs_one_of_its_flags(run, flags, given):
    said = run(f"export {flags}", code=2).err
    assert f"export writes one thing, but {given}" in said
    assert len(said.splitlines()) == 1


def test_a_csv_teaches_a_head_that_predicts(home, run, told, tmp_path):
    rows = ["a/low.wav,deep", "a/lower.wav,deep", "a/high.wav,bright", "b/higher.wav,bright"]
    rows += ["b/noise.wav,noisy", "b/gone.wav,deep", "b/more noise.wav,"]
    labels = home / "kinds.csv"
    labels.write_text("\n".join(["path,target", *rows]))
    command = f"teach {home}/all.parquet {labels} --model {home}/model --out {tmp_path}/kinds"
    shown = run(command, code=1)
    assert re.search(r"accuracy [\d.]+ %, 95 % interval .+: 4 songs, leave one out", shown.out)
    assert "always saying 'deep' would give 50.0 %" in shown.out
    assert "accuracy is that for other songs of the artists that you labelled" in shown.out
    assert re.search(r"^label +songs +right$", shown.out, re.M)
    assert "left out, with one song: noisy" in shown.out
    assert "skipped b/gone.wav: it is not in the table" in shown.err
    assert "b/gone.wav" in (tmp_path / "kinds.skipped.csv").read_text()
    results = told(command, code=1)
    assert (results["songs"], results["skipped"]) == ({"deep": 2, "bright": 2}, 1)
    described = run(f"info {tmp_path}/kinds").out
    assert re.search(
        r"score +accuracy .+ on 4 songs, leave one out; always saying 'deep' 0\.500; too few",
        described,
    )
    assert re.search(r"doubts +no: it answers for every file", described)
    command = f"predict {tmp_path}/kinds {home}/a --out {tmp_path}/labels.csv --workers 1"
    assert told(command)["rows"] == 3
    with (tmp_path / "labels.csv").open() as stream:
        found = {row["path"].rpartition("/")[2]: row["label"] for row in csv.DictReader(stream)}
    assert found == {"low.wav": "deep", "lower.wav": "deep", "high.wav": "bright"}


def test_a_column_group_is_held_out_together_and_labels_that_are_alike_are_named(
    home, run, tmp_path
):
    names = ["a/low", "a/lower", "a/high", "b/higher", "b/noise"]
    rows = [
        f"{home}/{name}.wav,{kind}"
        for name, kind in zip(names, ["x,A", "x,B", "X,A", "X,B", "x,C"])
    ]
    (tmp_path / "kinds.csv").write_text("\n".join(["path,label,group", *rows]))
    command = (
        f"teach {home}/all.parquet {tmp_path}/kinds.csv --model {home}/model --out {tmp_path}/k"
    )
    shown = run(command)
    assert "leave one group out" in shown.out
    assert "Songs of one group are held out together." in shown.out
    assert "songs of a new group, of which you labelled nothing" in shown.out
    assert re.search(r"^label +songs +groups +right$", shown.out, re.M)
    assert re.search(r"^x +3 +3 +\d", shown.out, re.M)
    assert re.search(r"^X +2 +2 +\d", shown.out, re.M)
    assert "labels that differ in case or spaces alone are different labels: 'x', 'X'" in shown.err


def test_a_head_that_may_have_learnt_nothing_is_said_and_so_are_several_labels_in_one(
    home, run, tmp_path
):
    names = ["a/low", "b/higher", "a/lower", "a/high"]  # labels that say nothing of the sound
    rows = [f"{name}.wav,{kind}" for name, kind in zip(names, ["x|y", "x|y", "z", "z"])]
    (tmp_path / "kinds.csv").write_text("\n".join(["Path,Label", *rows]))
    shown = run(
        f"teach {home}/all.parquet {tmp_path}/kinds.csv --model {home}/model --out {tmp_path}/k"
    )
    assert "The interval reaches down to that: the head may have learnt nothing." in shown.out
    assert "note: 'x|y' is one label for 'teach'" in shown.err


FOUR = "path,label\na/low.wav,x\na/lower.wav,x\na/high.wav,y\nb/higher.wav,y"


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ("path,mood\na/low.wav,x", "", "no column label or target; its columns: path, mood"),
        ("path,label,probability\na/low.wav,x,0.9", "", "these are predictions of a classifier"),
        ("path,label\ngone.wav,x", "", "none of its 1 paths is in the table"),
        ("path,label\na/low.wav,x\na/low.wav,y", "", "has the labels 'x' and 'y'"),
        ("path,label\na/low.wav,1.5\na/high.wav,2.5", "", "0 labels have two songs or more"),
        ("path,label\na/low.wav,x", "--group mood", "--group is 'mood', expected artist"),
        (
            "path,label,group\na/low.wav,x,A\na/low.wav,x,B",
            "",
            "has the groups 'A' and 'B', expected one",
        ),
        (FOUR, "--model drums", "--model is drums, a head, expected the model that made"),
        (FOUR, "--model hf://owner/name", "--model is hf://owner/name, but a head names a folder"),
        (FOUR, "--group artist", "none of the 4 labelled songs has that tag"),
    ],
)
def test_a_csv_that_cannot_teach_is_refused(rows, flags, said, home, run, tmp_path):
    (home / "wrong.csv").write_text(rows)
    command = f"teach {home}/all.parquet {home}/wrong.csv --model {home}/model --out {tmp_path}/x"
    assert said in run(f"{command} {flags}", code=2).err
    assert not (tmp_path / "x").exists()


def test_a_table_of_windows_does_not_teach(home, run, tmp_path):
    options = f"--model {home}/model --workers 1 --window_s"
    for seconds in (1, 60):  # several windows of each file, and one
        table = f"{tmp_path}/{seconds}.parquet"
        run(f"embed {home}/a {home}/b --out {table} {options} {seconds}")
        (tmp_path / "four.csv").write_text(FOUR.replace("a/", f"{home}/a/"))
        command = f"teach {table} {tmp_path}/four.csv --model {home}/model --out {tmp_path}/k"
        assert "embed without --window_s" in run(command, code=2).err


GROUPED = "path,label,group\na/low.wav,x,\na/lower.wav,x,%s\na/high.wav,y,%s\nb/higher.wav,y,%s"


def taught_by(text, home, run, tmp_path):
    (home / "groups.csv").write_text(text)
    command = f"teach {home}/all.parquet {home}/groups.csv --model {home}/model --out {tmp_path}/k"
    return run(command)


def test_rows_of_one_song_are_one_and_groups_that_differ_in_case_are_joined(home, run, tmp_path):
    text = GROUPED % ("grieg", "Verdi", "verdi ") + "\na/low.wav,x,Grieg\na/low.wav,x,"
    shown = taught_by(text, home, run, tmp_path)
    assert re.search(r"^x +2 +1 +\d", shown.out, re.M)
    assert "songs of a new group, of which you labelled nothing" in shown.out
    note = "note: groups that differ in case or spaces alone are one:"
    assert f"{note} 'Grieg', 'grieg'" in shown.err
    assert f"{note} 'Verdi', 'verdi'" in shown.err


def test_files_of_one_song_are_held_out_together_and_counted(home, run, tmp_path):
    (tmp_path / "music").mkdir()
    for song in (home / "a").iterdir():
        for end in ("", " again"):
            shutil.copy(song, tmp_path / "music" / f"{song.stem}{end}.wav")
    options = f"--model {home}/model --out"
    run(f"embed {tmp_path}/music {options} {tmp_path}/twice.parquet --workers 1")
    rows = ["low.wav,x", "low again.wav,x", "lower.wav,x", "high.wav,y", "high again.wav,y"]
    (tmp_path / "twice.csv").write_text("\n".join(["path,label", *rows, "lower again.wav,y"]))
    shown = run(f"teach {tmp_path}/twice.parquet {tmp_path}/twice.csv {options} {tmp_path}/k")
    assert "6 songs have the same vector as another labelled song" in shown.out
    assert "Each song stands alone, except those with the same vector" in shown.out
    assert "leave one group out" in shown.out


def test_of_songs_without_a_group_no_figure_for_new_groups_is_promised(home, run, tmp_path):
    shown = taught_by(GROUPED % ("A", "B", "B"), home, run, tmp_path)
    assert "1 of 4 have none: each is alone. So for songs of a new group" in shown.out
    assert "of which you labelled nothing" not in shown.out


def test_a_group_of_a_song_that_is_left_out_groups_nothing(home, run, tmp_path):
    shown = taught_by(GROUPED % ("", "", "") + "\nb/noise.wav,z,A", home, run, tmp_path)
    assert "left out, with one song: z" in shown.out
    assert "Each song stands alone" in shown.out


@pytest.mark.parametrize(
    ("text", "named"),
    [(FOUR, "k.skipped.csv"), ("my list\n", "labels.csv"), (FOUR, "labels.csv")],
)
def test_the_list_of_skipped_rows_replaces_no_other_file(text, named, home, run, tmp_path):
    (tmp_path / "labels.csv").write_text(FOUR)
    (tmp_path / "k.skipped.csv").write_text(text)
    command = f"teach {home}/all.parquet {tmp_path}/{named} --model {home}/model --out {tmp_path}/k"
    said = run(command, code=2).err
    assert f"{tmp_path}/k.skipped.csv" in said
    assert "choose another name" in said
    assert (tmp_path / "k.skipped.csv").read_text() == text
    assert not (tmp_path / "k").exists()


def test_a_head_is_not_written_below_a_file_or_in_place_of_one(home, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    command = f"teach {home}/all.parquet {home}/two.csv --model {home}/model --out {tmp_path}/file"
    for where, said in (("/k", "is not a folder"), ("/a/k", "is not a folder"), ("", "not a head")):
        shown = run(f"{command}{where}", code=2)
        assert said in shown.err
        assert len(shown.err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_table_of_another_model_is_not_taught_and_no_other_folder_is_replaced(
    home, run, tmp_path
):
    (home / "two.csv").write_text(FOUR)
    command = f"teach {home}/all.parquet {home}/two.csv --out"
    assert "with --model" in run(f"{command} {tmp_path}/x", code=2).err
    shown = run(f"{command} {home}/a --model {home}/model", code=2)
    assert "is not a head" in shown.err
    assert (home / "a" / "low.wav").exists()

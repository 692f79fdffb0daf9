"""Encoders side by side: known encoders get known scores, and what must be said is said."""

import copy
import csv
import dataclasses
import json
import re
import shutil
import time

import numpy as np
import pytest

from patchifier import audio, cache, checkpoint, datasets, weights
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, SpectrogramConfig, update
from patchifier.datasets import Clip, Dataset, demo
from patchifier.datasets.splits import ungrouped_note
from patchifier.evaluate import compare, leaks, report, robustness
from patchifier.evaluate.encoders import Encoder, as_encoder, each_clip, encoders
from patchifier.evaluate.evaluator import Evaluator
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.io import Hundredths, silent
from patchifier.nn.model import Patchifier
from patchifier.tasks import Task

CLIPS = 40
NAMES = ("high", "low", "middle")


def label(number):
    return ("low", "low", "middle", "high")[number % 4]


def hertz(number):
    register = {"low": 200.0, "middle": 900.0, "high": 4000.0}[label(number)]
    return register * (1 + 0.01 * (number % 7))


def prepare(folder, name, clips, task=None, **how):
    dataset = Dataset(name, tuple(clips), task)
    cache.prepare(dataset, folder / f"{name}-cache", workers=1, **how)
    return Cache(folder / f"{name}-cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tones of three registers, 2 s each, in pairs of one group; half of them are low."""
    folder, clips = tmp_path_factory.mktemp("compare"), []
    time_s = np.arange(2 * audio.SAMPLE_RATE) / audio.SAMPLE_RATE
    for number in range(CLIPS):
        path, group = str(folder / f"{number:02}.wav"), f"pair {number // 2}"
        wave = 0.3 * np.sin(2 * np.pi * hertz(number) * time_s)
        audio.save(path, wave.astype(np.float32))
        clips.append(Clip(f"{number:02}", path, group=group, target=label(number)))
    return prepare(folder, "tones", clips, Task("one-of", NAMES))


@pytest.fixture
def compared(data, tmp_path):
    """Compare encoders, by default on the tones."""

    def run(*encoders, on=data, folder="run", **how):
        return compare.compare(on, list(encoders), tmp_path / folder, **how)

    return run


def changed(data, task=None, **changes):
    """The same cache with other facts about its clips: each a function of the clip's number."""
    other = Cache(data.path)
    other.task = task or data.task
    other.clips = tuple(
        dataclasses.replace(clip, **{key: change(number) for key, change in changes.items()})
        for number, clip in enumerate(data.clips)
    )
    return other


def encoder(name, feature, **more):
    """An encoder of a function of the data and the clip's place."""

    def encode(data, indices, **_):
        return np.stack([np.atleast_1d(feature(data, index)) for index in indices]).astype("f4")

    return Encoder(name, encode, **more)


def number_of(data, index):
    return int(data.clips[index].id)


def knows(name="knows", **more):
    """The register itself, as one of three numbers that a linear probe reads."""
    one_hot = np.eye(3)
    return encoder(name, lambda *clip: one_hot[NAMES.index(label(number_of(*clip)))], **more)


def blind(name="blind", seed=0):
    def feature(*clip):
        return np.random.default_rng([seed, number_of(*clip)]).standard_normal(8)

    return encoder(name, feature, seed=seed)


def loudness(data, index):
    return float(np.asarray(data.log_mel(index), np.float32).max())


def rows_of(results, name, **wanted):
    rows = [row for row in results["rows"] if row["encoder"] == name]
    return [row for row in rows if wanted.items() <= row.items()]


def interval(difference):
    return [difference[name] for name in ("value", "low", "high", "p")]


def test_known_encoders_get_known_scores(compared):
    results = compared(knows(), blind())
    names = ("knows", "blind", "majority")
    (best,), (worst,), (majority,) = (rows_of(results, name) for name in names)
    assert best["value"] == 1.0
    assert majority["value"] == 0.5  # 20 of 40 are low, in every fold about half
    assert 0.2 < worst["value"] < 0.65
    assert {row["n"] for row in results["rows"]} == {CLIPS}
    (difference,) = results["differences"]
    assert (difference["first"], difference["second"]) == ("knows", "blind")
    assert difference["value"] == pytest.approx(best["value"] - worst["value"])
    assert difference["low"] > 0
    assert difference["p_holm"] < 0.01


@pytest.mark.parametrize("made", [knows, blind])
def test_encoders_that_err_on_the_same_clips_differ_by_nothing_in_every_draw(compared, made):
    results = compared(made("one"), made("two"), blind("three", seed=1))
    same = next(row for row in results["differences"] if row["second"] == "two")
    value, low, high, p = interval(same)
    assert (value, p, same["p_holm"], same["agree"]) == (0.0, 1.0, 1.0, True)
    assert -low == high > 0


def test_repeated_runs_are_one_row_with_their_mean(compared):
    runs = [blind("random", seed=seed) for seed in range(3)]
    alone = [rows_of(compared(run), "random")[0]["value"] for run in runs]
    (row,) = rows_of(compared(*runs), "random")
    assert len(set(alone)) > 1
    assert row["value"] == pytest.approx(np.mean(alone))


def test_every_clip_is_tested_once_and_predictions_are_written(data, compared, tmp_path):
    compared(knows())
    text = (tmp_path / "run" / "predictions" / "knows.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert sorted(row["id"] for row in rows) == [clip.id for clip in data.clips]
    assert all(max(NAMES, key=lambda name: float(row[name])) == row["target"] for row in rows)


def test_the_data_sets_own_split_is_kept(data, compared):
    sides = ("train", "train", "train", "valid", "test")
    results = compared(knows(), on=changed(data, split=lambda number: sides[number // 2 % 5]))
    assert results["split"] == "the data set's own split"
    assert rows_of(results, "knows")[0]["n"] == 8


def test_parts_of_the_test_side_are_scored_by_themselves(data, compared):
    parts = changed(data, subsets=lambda number: ("clean",) if number < 16 else ())
    results = compared(knows(), blind(), on=parts)
    assert [row["n"] for row in rows_of(results, "knows")] == [CLIPS, 16]
    assert rows_of(results, "blind", subset="clean")[0]["n"] == 16


def test_numbers_are_scored_by_r2_over_all_clips_at_once(data, compared):
    task = Task("numbers", ("log hertz",))
    numbers = changed(data, task, target=lambda number: float(np.log(hertz(number))))
    exact = encoder("exact", lambda *clip: np.log(hertz(number_of(*clip))))
    results = compared(exact, on=numbers)
    (row,) = rows_of(results, "exact")
    assert row["value"] > 0.99
    assert row["also_r2_log hertz"] > 0.99
    assert rows_of(results, "majority")[0]["value"] < 0.05


def test_cost_and_parameters_stand_in_the_row(compared):
    def slow(data, indices, **_):
        time.sleep(0.05)
        return np.zeros((len(indices), 2), np.float32)

    (row,) = rows_of(compared(Encoder("slow", slow, parameters=7)), "slow")
    assert row["parameters"] == 7
    assert 0.05 / 16.2 < row["seconds_per_second"] < 0.1  # eight clips of 2 s


def test_perturbed_clips_are_asked_of_the_same_probe(data, compared, monkeypatch):
    (name,) = (name for name in robustness.PERTURBATIONS if "gain" in name)
    monkeypatch.setattr(robustness, "PERTURBATIONS", {name: robustness.PERTURBATIONS[name]})

    def loud(number):
        return number % 4 < 2

    task = Task("one-of", ("loud", "quiet"))
    levels = changed(data, task, target=lambda number: "loud" if loud(number) else "quiet")
    level = encoder("level", lambda *clip: loudness(*clip) + 0.2 * loud(number_of(*clip)))
    results = compared(level, on=levels, robust=True)
    assert rows_of(results, "level", condition="")[0]["value"] == 1.0
    (row,) = rows_of(results, "level", condition=name)
    assert (row["value"], row["n"]) == (0.5, CLIPS)  # 20 dB down, everything is quiet


def test_a_perturbed_clip_that_got_lost_is_not_passed_over(data, compared, monkeypatch):
    def lose_one(data, indices, name, out, **more):
        other = changed(data)
        other.clips = tuple(data.clips[index] for index in indices[1:])
        return other

    monkeypatch.setattr(robustness, "perturb", lose_one)
    with pytest.raises(RequestError, match="39 perturbed clips for 40"):
        compared(knows(), robust=True)


def test_few_examples_have_a_row_for_each_number(compared, tmp_path):
    notes = []
    progress = lambda title: lambda done, total, note: notes.append(note)  # noqa: E731
    results = compared(knows(), blind(), protocol="few-shot", progress=progress)
    assert "probe of fold 5, 150 of 150, 5 clips of each class" in notes
    methods = [row["method"] for row in rows_of(results, "knows")]
    assert methods == [f"few-shot, {k} a class" for k in (1, 2, 5)]
    assert "rarest class has 6" in results["notes"][0]
    assert all(row["value"] == 1.0 for row in rows_of(results, "knows"))
    assert all(row["value"] < 0.7 for row in rows_of(results, "blind"))
    (always,) = rows_of(results, "majority")  # half of the clips are of one class
    assert always["low"] == always["value"] == always["high"] == 0.5
    page = report.report(tmp_path / "run", tmp_path / "out").read_text(encoding="utf-8")
    assert "lines that hold 95 % of the draws" in page
    assert "over groups" not in page
    best = r"knows, 1 a class reaches .*; of the others, blind, 1 a class does best"
    assert re.search(best, page)


def test_a_class_without_training_clips_is_named(data, compared):
    def side(number):
        return "test" if label(number) == "high" else ("train", "valid", "test")[number % 3]

    with pytest.raises(RequestError, match="class 'high' has 0 training clips"):
        compared(knows(), on=changed(data, split=side), protocol="few-shot")


def test_a_class_of_tested_clips_alone_is_a_note(data, tmp_path):
    other = changed(
        data,
        split=lambda number: (
            "test" if label(number) == "high" else ("train", "valid", "test")[number % 3]
        ),
    )
    notes = " ".join(compare.compare(other, [knows()], tmp_path / "run")["notes"])
    assert "in no training clip" in notes
    assert "high (10 clips)" in notes


def test_clips_without_a_group_stand_alone_and_a_note_says_what_that_means(data, tmp_path):
    results = compare.compare(changed(data, group=lambda _: None), [knows()], tmp_path / "alone")
    assert results["split"] == "each of 5 folds (made here, each file alone) tested in turn"
    (note,) = [note for note in results["notes"] if "stands alone" in note]
    assert "No clip has a group" in note
    assert "column 'group'" in note
    results = compare.compare(data, [knows()], tmp_path / "grouped")
    assert results["split"] == "each of 5 folds (made here, by group) tested in turn"
    assert not [note for note in results["notes"] if "stands alone" in note]
    assert (
        "18 clips have no group"
        in ungrouped_note(
            changed(data, group=lambda number: f"g{number // 2}" if number < 22 else None).clips
        )[0]
    )
    assert not ungrouped_note(changed(data, group=lambda _: None, fold=lambda n: n % 4).clips)


def test_a_label_of_one_group_alone_is_named_with_what_to_do(data, tmp_path):
    other = changed(data, group=lambda number: "H" if label(number) == "high" else f"g{number}")
    (note,) = compare.compare(other, [knows()], tmp_path / "run")["notes"]
    assert "high (10 clips of fold " in note
    assert "All clips of a label are of one group (high)" in note
    assert "Add clips of a second group" in note


def test_other_metrics_of_repeated_encoders_are_their_mean_not_those_of_an_ensemble(data, tmp_path):
    task = Task("numbers", ("log hertz",))
    pitches = changed(data, task, target=lambda number: [float(np.log(hertz(number)))])
    quiet = (0, {}, tmp_path, lambda title: silent)
    evaluator = Evaluator(pitches, task, "linear", compare.splits_of(pitches), *quiet)
    steps = evaluator.steps("one", 0)
    truth = np.log([[hertz(number)] for number in range(CLIPS)])
    noise = [np.random.default_rng(seed).standard_normal(truth.shape) for seed in range(5)]
    runs = [{"": truth[evaluator.tested] + one} for one in noise]
    each = [evaluator.rows("one", truth, [run], {}, steps)[0]["also_r2_log hertz"] for run in runs]
    (row,) = evaluator.rows("five", truth, runs, {}, steps)
    assert row["also_r2_log hertz"] == pytest.approx(np.mean(each))
    assert row["also_r2_log hertz"] == pytest.approx(row["value"])


# --- notes on leaks ---


def notes_of(listener, data, folder):
    tested = np.concatenate([split.test for split in compare.splits_of(data)])
    return leak_notes([listener], data, tested.tolist(), folder)


@pytest.fixture
def trained(tmp_path):
    """A run that is said to have trained on a cache."""

    def write(heard, name="pretrain", **facts):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "run.json").write_text(json.dumps({"cache": str(heard), **facts}))
        return knows("model", trained_on=tmp_path / name)

    return write


def write_sounds(folder, noise, **seeds):
    folder.mkdir()
    for name, seed in seeds.items():
        audio.save(folder / f"{name}.wav", noise(12.0, seed=seed))
    return datasets.load(folder).clips


def test_clips_that_were_heard_in_training_are_named_and_searched_for_once(
    tmp_path, noise, monkeypatch, trained
):
    heard = write_sounds(tmp_path / "h", noise, a=0, b=1, c=2)
    tested = [Clip(f"t{n}", str(tmp_path / f"t{n}.wav"), target=label(n)) for n in range(CLIPS)]
    for number, clip in enumerate(tested):
        audio.save(clip.path, noise(2.0, seed=3 + number))
    audio.save(tested[5].path, 0.5 * noise(12.0, seed=1)[3 * audio.SAMPLE_RATE :])
    run = trained(prepare(tmp_path, "heard", heard).path).trained_on
    prepare(tmp_path, "tested", tested, Task("one-of", NAMES))
    searches, found = [], leaks.leaks

    def counted(*given, **named):
        searches.append(given)
        return found(*given, **named)

    monkeypatch.setattr(leaks, "leaks", counted)
    seeds = [encoder("model", loudness, trained_on=run, seed=seed) for seed in (0, 1)]
    seeds.append(encoder("unknown", loudness, trained_on=tmp_path / "gone"))
    results = compare.compare(tmp_path / "tested-cache", seeds, tmp_path / "run")
    first, second, unknown, _ = results["notes"]  # the last: no clip has a group
    assert first == second
    assert first.endswith("are in this test: t5.")
    assert "could not be looked for" in unknown
    assert len(searches) == 1


def test_clips_that_were_heard_in_training_and_are_not_tested_are_not_named(
    tmp_path, noise, threads, trained
):
    heard, tested = (
        prepare(tmp_path, name, write_sounds(tmp_path / name, noise, **seeds))
        for name, seeds in (("heard", {"a": 1, "b": 2}), ("tested", {"a": 1, "b": 2, "c": 3}))
    )
    sides = changed(tested, split=lambda number: ("train", "test", "valid")[number])
    (note,) = notes_of(trained(heard.path), sides, tmp_path)
    assert note.endswith(": b.wav.")
    rows = csv.DictReader((tmp_path / "leaks-heard-cache.csv").read_text().splitlines())
    assert [row["second"] for row in rows] == ["b.wav"]


@pytest.mark.parametrize(
    ("heard", "said"),
    [(CLIPS, f"all {CLIPS} test clips."), (7, f"00, 01, 02, 03, 04 and 2 more of {CLIPS} test")],
)
def test_of_many_clips_that_were_heard_in_training_the_note_names_a_few(
    data, tmp_path, trained, monkeypatch, heard, said
):
    ids = [clip.id for clip in data.clips[:heard]]
    found = tuple(leaks.Leak("a", each, "same recording", 1.0, 0.0, 2.0) for each in ids)
    monkeypatch.setattr(leaks, "leaks", lambda *given, **named: found)
    shutil.copytree(data.path, tmp_path / "copy")
    (note,) = notes_of(trained(tmp_path / "copy"), data, tmp_path)
    assert said in note
    rows = csv.DictReader((tmp_path / "leaks-copy.csv").read_text().splitlines())
    assert [row["second"] for row in rows] == ids


def test_leaks_are_found_with_and_without_pitch_bands_and_other_mel_bands_are_said(
    tmp_path, noise, trained
):
    configs = {
        "heard": SpectrogramConfig(n_mels=64, n_pitch_bands=24),
        "tested": SpectrogramConfig(),
    }
    seeds = {"heard": {"b": 2, "c": 4}, "tested": {"b": 3, "c": 5}}
    heard, tested = (
        prepare(
            tmp_path, name, write_sounds(tmp_path / name, noise, a=1, **seeds[name]), config=config
        )
        for name, config in configs.items()
    )
    for one, two in ((heard, tested), (tested, heard)):
        assert [(leak.first, leak.second) for leak in leaks.leaks(one, two)] == [("a.wav", "a.wav")]
    coarse = prepare(tmp_path, "coarse", tested.clips, config=SpectrogramConfig(n_mels=48))
    sides = changed(tested, split=lambda number: ("train", "valid", "test")[number % 3])
    (note,) = notes_of(trained(coarse.path), sides, tmp_path)
    assert re.search(r"could not be searched for clips of this test: .*n_mels is", note)


def test_the_run_that_a_model_was_started_from_is_looked_at_too(data, tmp_path, trained):
    trained(data.path, "first")
    listener = trained("gone", "second", init=str(tmp_path / "first" / "model"))
    (note,) = notes_of(listener, data, tmp_path)
    said = r"not available.*Started from .*first/model: pre-trained, without labels, on clips of th"
    assert re.search(said, note)


def test_another_cache_in_the_place_of_the_one_that_was_heard_is_not_taken_for_it(
    data, tmp_path, trained
):
    (note,) = notes_of(trained(data.path, music="of other clips"), data, tmp_path)
    assert "not available" in note


def test_a_cache_of_which_parts_are_missing_stops_no_comparison(data, tmp_path, trained):
    heard = tmp_path / "heard"
    shutil.copytree(data.path, heard)
    for shard in heard.rglob("*.npy"):
        shard.unlink()
    (note,) = notes_of(trained(heard), data, tmp_path)
    assert re.search(r"could not be searched for clips of this test: .*00000\.npy", note)


def test_of_a_bundled_model_it_is_said_that_nobody_can_look(data, tmp_path):
    (listener,) = encoders("patchifier-base", data=data)
    (note,) = notes_of(listener, data, tmp_path)
    assert note.startswith("patchifier-base: comes without its training data")
    assert note.endswith("could not be looked for; its card lists the data.")


def test_training_on_the_tested_clips_is_said(data, compared, trained):
    (note,) = compared(trained(data.path))["notes"]
    assert "this very cache" in note


# --- other log-mels than the cache's ---


def test_a_model_that_reads_other_log_mels_is_named_once_with_what_to_do(data, compared, caplog):
    config = update(Config(), {"spectrogram": {"n_mels": 32}})
    made = checkpoint.Checkpoint(Patchifier(config), config)
    there = checkpoint.Checkpoint(Patchifier(Config()), Config())
    coarse = [as_encoder(name, made) for name in ("random:coarse", "random:coarse", "coarse")]
    compared(as_encoder("there", there), *coarse, blind())
    (line,) = caplog.messages
    assert line.startswith("random:coarse, coarse: the audio files are read again")
    assert "'patchifier prepare --model coarse'" in line


# --- progress ---


def test_every_step_of_an_encoder_shows_progress(compared):
    counted = each_clip("counted", lambda data, index: np.array([index, index % 3], np.float32))
    shown = []
    compared(
        Encoder("counted", counted),
        blind(),
        progress=lambda title: lambda *report: shown.append((title, *report)),
    )
    titles = list(dict.fromkeys(title for title, *_ in shown))
    assert titles == ["majority", "counted", "blind", "paired differences"]
    mine = [report[1:] for report in shown if report[0] == "counted"]
    steps = [done for done, *_ in mine]
    assert steps == sorted(steps)
    assert mine[-1][0] == mine[-1][1]
    assert all(isinstance(total, Hundredths) for _, total, _ in mine)
    notes = [note for *_, note in mine]
    assert {f"features, {number} of {CLIPS} clips" for number in range(1, CLIPS + 1)} <= set(notes)
    assert sum(note.startswith("probe of fold 5, ") for note in notes) == 7  # strengths
    assert "intervals" in notes
    assert re.fullmatch(r"accuracy \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", notes[-1])


# --- the run folder ---


def test_a_second_comparison_replaces_the_first_and_no_other_run(compared, tmp_path):
    compared(knows())
    assert not (tmp_path / "run" / "config.json").exists()
    compared(blind())
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["state"], facts["encoders"]) == ("finished", ["blind"])
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"kind": "pretrain"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for folder, said in (("run", "another command"), ("other", "is not a run")):
        with pytest.raises(RequestError, match=said):
            compared(knows(), folder=folder)


def test_a_comparison_of_another_cache_or_data_set_is_left_alone(data, compared, tmp_path):
    compared(knows())
    shutil.copytree(data.path, tmp_path / "copy")
    renamed = changed(data)
    renamed.name = "other"
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for other in (Cache(tmp_path / "copy"), renamed):
        with pytest.raises(RequestError, match=r"holds a run already.*choose another --out"):
            compared(blind(), on=other)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def test_the_same_cache_by_another_way_of_writing_its_path_is_compared_again(
    data, compared, monkeypatch
):
    compared(knows())
    monkeypatch.chdir(data.path.parent)
    assert rows_of(compared(blind(), on=Cache(data.path.name)), "blind")


@pytest.mark.parametrize(("how", "left"), [({}, {"blind.csv"}), ({"protocol": "few-shot"}, set())])
def test_predictions_and_differences_are_those_of_the_last_table(compared, tmp_path, how, left):
    compared(knows(), blind())
    compared(blind(), **how)
    assert {path.name for path in (tmp_path / "run" / "predictions").iterdir()} == left
    assert not (tmp_path / "run" / "differences.csv").exists()


# --- the page ---


def test_the_page_tells_what_the_results_say(data, compared, tmp_path):
    parts = changed(data, subsets=lambda number: ("clean",) if number < 16 else ())
    compared(knows(), blind(), on=parts)
    page = report.report(tmp_path / "run", tmp_path / "page").read_text()
    assert "Vectors by the same probe: tones" in page
    bold = r"<b>\+\d+\.\d \(\+\d+\.\d to \+\d+\.\d\)</b>"  # the interval leaves out 0
    assert re.search(bold, page)
    assert "knows reaches <strong>100.0 %</strong>" in page
    assert "Subsets of the test clips" in page
    files = list((tmp_path / "page").glob("comparison-*"))
    assert {path.suffix for path in files} == {".md", ".png", ".svg"}
    (table,) = (path for path in files if path.suffix == ".md")
    assert "| knows | 100.0 % |" in table.read_text()
    assert "on a machine that may have been busy" in page
    listed = (tmp_path / "page" / "table.md").read_text()
    assert "| knows | linear | accuracy (%) | 100.0 |" in listed
    assert "subset: clean" in listed
    rows = list(csv.DictReader((tmp_path / "page" / "table.csv").read_text().splitlines()))
    told = [(row["encoder"], row["value"]) for row in rows if "subset" not in row["test"]]
    assert [name for name, _ in told] == ["majority", "knows", "blind"]
    assert told[1][1] == "1.0"
    (tmp_path / "run" / "results.json").write_text("{")
    page = report.report(tmp_path / "run", tmp_path / "page").read_text()
    assert "results.json cannot be read" in page


# --- what is refused ---


def test_clips_without_targets_and_an_unknown_probe_are_refused(data, compared):
    without = changed(data)
    without.task = None
    with pytest.raises(RequestError, match="no targets"):
        compared(knows(), on=without)
    with pytest.raises(RequestError, match="linear"):
        compared(knows(), protocol="magic")


@pytest.mark.parametrize("bundled", [True, False])
def test_bundled_clips_come_with_what_the_packages_models_have_heard(data, tmp_path, bundled):
    path = demo.load().clips[0].path if bundled else str(tmp_path / "mine.wav")
    clips = (dataclasses.replace(data.clips[0], path=path), *data.clips[1:])
    mine = copy.copy(data)
    mine.clips = clips
    model = dataclasses.replace(knows("patchifier-base"), trained_on=weights.ROOT.resolve())
    (note,) = leak_notes([model], mine, [0], tmp_path)
    assert ("other tracks of most of these soundtracks" in note) == bundled

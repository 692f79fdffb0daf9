"""Encoders side by side: known encoders get known scores, every clip is tested once, what must be said is said."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from patchifier import audio, cache, datasets
from patchifier.cache import Cache
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate import compare, leaks, report, robustness
from patchifier.evaluate.encoders import Encoder, each_clip, encoders
from patchifier.evaluate.evaluator import Evaluator
from patchifier.evaluate.leak_notes import leak_notes
from patchifier.io import silent
from patchifier.tasks import Task

CLIPS = 40
NAMES = ("high", "low", "middle")


def hertz(number: int) -> float:
    return {"low": 200.0, "middle": 900.0, "high": 4000.0}[label(number)] * (
        1 + 0.01 * (number % 7)
    )


def label(number: int) -> str:
    return ("low", "low", "middle", "high")[number % 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Cache:
    """Tones of three registers, 2 s each, in pairs of one group; half as many of two classes as of the third."""
    folder, clips = tmp_path_factory.mktemp("compare"), []
    for number in range(CLIPS):
        wave = 0.3 * np.sin(
            2 * np.pi * hertz(number) * np.arange(2 * audio.SAMPLE_RATE) / audio.SAMPLE_RATE
        )
        audio.save(folder / f"{number:02}.wav", wave.astype(np.float32))
        clips.append(
            Clip(
                f"{number:02}",
                str(folder / f"{number:02}.wav"),
                group=f"pair {number // 2}",
                target=label(number),
            )
        )
    cache.prepare(
        Dataset("tones", tuple(clips), Task("one-of", NAMES)), folder / "cache", workers=1
    )
    return Cache(folder / "cache")


def changed(data: Cache, task: Task | None = None, **changes) -> Cache:
    """The same cache with other facts about its clips: each a function of the clip's number."""
    other = Cache(data.path)
    other.task = task or data.task
    values = [
        {key: change(number) for key, change in changes.items()}
        for number in range(len(data.clips))
    ]
    other.clips = tuple(
        dataclasses.replace(clip, **value) for clip, value in zip(data.clips, values, strict=True)
    )
    return other


def encoder(name: str, feature, **more) -> Encoder:
    """One number a clip: a function of its number, or of its log-mel."""
    return Encoder(
        name,
        lambda data, indices, **_: np.array(
            [[feature(data, index)] for index in indices], np.float32
        ),
        **more,
    )


def knows(name="knows", **more) -> Encoder:
    """The register itself, as a number that a linear probe reads with one of three numbers."""

    def encode(data, indices, **_):
        return np.array(
            [np.eye(3)[NAMES.index(label(int(data.clips[index].id)))] for index in indices],
            np.float32,
        )

    return Encoder(name, encode, **more)


def blind(name="blind", seed=0) -> Encoder:
    def encode(data, indices, **_):
        return np.array(
            [
                np.random.default_rng([seed, int(data.clips[index].id)]).standard_normal(8)
                for index in indices
            ],
            np.float32,
        )

    return Encoder(name, encode, seed=seed)


def loudness(data, index) -> float:
    return float(np.asarray(data.log_mel(index), np.float32).max())


def rows_of(results, name, **wanted):
    return [
        row
        for row in results["rows"]
        if row["encoder"] == name and all(row[key] == value for key, value in wanted.items())
    ]


def test_known_encoders_get_known_scores(data, tmp_path):
    results = compare.compare(data, [knows(), blind()], tmp_path / "run")
    (best,), (worst,), (majority,) = (
        rows_of(results, name) for name in ("knows", "blind", "majority")
    )
    assert best["value"] == 1.0
    assert majority["value"] == 0.5  # 20 of 40 are low, in every fold about half
    assert 0.2 < worst["value"] < 0.65
    assert {row["n"] for row in results["rows"]} == {CLIPS}
    (difference,) = results["differences"]
    assert (difference["first"], difference["second"]) == ("knows", "blind")
    assert difference["value"] == pytest.approx(best["value"] - worst["value"])
    assert difference["low"] > 0
    assert difference["p_holm"] < 0.01


def test_an_encoder_against_itself_makes_no_difference(data, tmp_path):
    results = compare.compare(data, [knows("one"), knows("two"), blind()], tmp_path / "run")
    same = next(row for row in results["differences"] if row["second"] == "two")
    assert (same["value"], same["low"], same["high"], same["p"], same["p_holm"]) == (
        0.0,
        0.0,
        0.0,
        1.0,
        1.0,
    )


def test_encoders_that_err_on_the_same_clips_differ_by_exactly_nothing_in_every_draw(
    data, tmp_path
):
    (difference,) = compare.compare(data, [blind("one"), blind("two")], tmp_path / "run")[
        "differences"
    ]
    assert (difference["value"], difference["low"], difference["high"], difference["p"]) == (
        0.0,
        0.0,
        0.0,
        1.0,
    )


def test_repeated_runs_are_one_row_with_their_mean(data, tmp_path):
    results = compare.compare(
        data, [blind("random", seed=seed) for seed in range(3)], tmp_path / "run"
    )
    alone = [
        rows_of(
            compare.compare(data, [blind("random", seed=seed)], tmp_path / f"{seed}"), "random"
        )[0]["value"]
        for seed in range(3)
    ]
    (row,) = rows_of(results, "random")
    assert len(set(alone)) > 1
    assert row["value"] == pytest.approx(np.mean(alone))


def test_every_clip_is_tested_once_and_predictions_are_written(data, tmp_path):
    compare.compare(data, [knows()], tmp_path / "run")
    with (tmp_path / "run" / "predictions" / "knows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["id"] for row in rows) == [clip.id for clip in data.clips]
    assert all(max(NAMES, key=lambda name: float(row[name])) == row["target"] for row in rows)


def test_the_data_sets_own_split_is_kept(data, tmp_path):
    split = changed(
        data, split=lambda number: ("train", "train", "train", "valid", "test")[number // 2 % 5]
    )
    results = compare.compare(split, [knows()], tmp_path / "run")
    assert results["split"] == "the data set's own split"
    assert rows_of(results, "knows")[0]["n"] == 8


def test_parts_of_the_test_side_are_scored_by_themselves(data, tmp_path):
    parts = changed(data, subsets=lambda number: ("clean",) if number < 16 else ())
    results = compare.compare(parts, [knows(), blind()], tmp_path / "run")
    assert [row["n"] for row in rows_of(results, "knows")] == [CLIPS, 16]
    assert rows_of(results, "blind", subset="clean")[0]["n"] == 16


def test_numbers_are_scored_by_r2_over_all_clips_at_once(data, tmp_path):
    task = Task("numbers", ("log hertz",))
    numbers = changed(data, task, target=lambda number: float(np.log(hertz(number))))
    exact = encoder("exact", lambda data, index: float(np.log(hertz(int(data.clips[index].id)))))
    results = compare.compare(numbers, [exact], tmp_path / "run")
    assert rows_of(results, "exact")[0]["value"] > 0.99
    assert rows_of(results, "majority")[0]["value"] < 0.05
    assert rows_of(results, "exact")[0]["also_r2_log hertz"] > 0.99


def test_cost_and_parameters_stand_in_the_row(data, tmp_path):
    def slow(data, indices, **_):
        import time

        time.sleep(0.05)
        return np.zeros((len(indices), 2), np.float32)

    (row,) = rows_of(
        compare.compare(data, [Encoder("slow", slow, parameters=7)], tmp_path / "run"), "slow"
    )
    assert row["parameters"] == 7
    assert 0.05 / 16.2 < row["seconds_per_second"] < 0.1  # eight clips of 2 s


def test_perturbed_clips_are_asked_of_the_same_probe(data, tmp_path, monkeypatch):
    kept = {
        name: robustness.PERTURBATIONS[name]
        for name in list(robustness.PERTURBATIONS)
        if "gain" in name
    }
    assert len(kept) == 1
    monkeypatch.setattr(robustness, "PERTURBATIONS", kept)
    task = changed(data, Task("one-of", ("loud", "quiet")), target=lambda number: "loud")
    task.clips = tuple(
        dataclasses.replace(clip, target="loud" if int(clip.id) % 4 < 2 else "quiet")
        for clip in task.clips
    )
    level = encoder(
        "level",
        lambda data, index: (
            loudness(data, index) + (0.2 if int(data.clips[index].id) % 4 < 2 else 0.0)
        ),
    )
    results = compare.compare(task, [level], tmp_path / "run", robust=True)
    (name,) = kept
    assert rows_of(results, "level", condition="")[0]["value"] == 1.0
    assert (
        rows_of(results, "level", condition=name)[0]["value"] == 0.5
    )  # 20 dB down, everything is quiet
    assert rows_of(results, "level", condition=name)[0]["n"] == CLIPS


def test_a_perturbed_clip_that_got_lost_is_not_passed_over(data, tmp_path, monkeypatch):
    def lose_one(data, indices, name, out, **more):
        other = changed(data)
        other.clips = tuple(data.clips[index] for index in indices[1:])
        return other

    monkeypatch.setattr(robustness, "perturb", lose_one)
    with pytest.raises(RequestError, match="39 perturbed clips for 40"):
        compare.compare(data, [knows()], tmp_path / "run", robust=True)


def test_few_examples_have_a_row_for_each_number(data, tmp_path):
    notes = []
    results = compare.compare(
        data, [knows(), blind()], tmp_path / "run", protocol="few-shot",
        progress=lambda title: lambda done, total, note: notes.append(note),
    )  # fmt: skip
    assert "probe of fold 5, 150 of 150, 5 clips of each class" in notes
    methods = [row["method"] for row in rows_of(results, "knows")]
    assert methods == [f"few-shot, {k} a class" for k in (1, 2, 5)]
    assert "rarest class has 6" in results["notes"][0]
    assert all(row["value"] == 1.0 for row in rows_of(results, "knows"))
    assert all(row["value"] < 0.7 for row in rows_of(results, "blind"))
    (always,) = rows_of(results, "majority")
    assert (
        always["low"] == always["value"] == always["high"] == 0.5
    )  # half of the clips are of one class
    page = report.report(tmp_path / "run", tmp_path / "out").read_text(encoding="utf-8")
    assert "lines that hold 95 % of the draws" in page
    assert "over groups" not in page
    assert re.search(
        r"knows, 1 a class reaches .*; of the others, blind, 1 a class does best", page
    )


def test_a_class_without_training_clips_is_named(data, tmp_path):
    other = changed(
        data,
        split=lambda number: (
            "test" if label(number) == "high" else ("train", "valid", "test")[number % 3]
        ),
    )
    with pytest.raises(RequestError, match="class 'high' has 0 training clips"):
        compare.compare(other, [knows()], tmp_path / "run", protocol="few-shot")


def test_other_metrics_of_repeated_encoders_are_their_mean_not_those_of_an_ensemble(data, tmp_path):
    pitches = changed(
        data, Task("numbers", ("log hertz",)), target=lambda number: [float(np.log(hertz(number)))]
    )
    evaluator = Evaluator(
        pitches,
        pitches.task,
        "linear",
        compare.splits_of(pitches),
        0,
        {},
        tmp_path,
        lambda title: silent,
    )
    tested, steps = evaluator.tested, evaluator.steps("one", 0)
    truth = np.array([[np.log(hertz(number))] for number in range(CLIPS)])
    runs = [
        {"": truth[tested] + np.random.default_rng(seed).standard_normal(truth.shape)}
        for seed in range(5)
    ]
    each = [evaluator.rows("one", truth, [run], {}, steps)[0]["also_r2_log hertz"] for run in runs]
    (row,) = evaluator.rows("five", truth, runs, {}, steps)
    assert row["also_r2_log hertz"] == pytest.approx(np.mean(each))
    assert row["also_r2_log hertz"] == pytest.approx(row["value"])


# --- notes on leaks ---


def notes_of(listener, data, folder):
    tested = np.concatenate([split.test for split in compare.splits_of(data)])
    return leak_notes([listener], data, tested.tolist(), folder)


def trained(tmp_path, heard) -> Encoder:
    (tmp_path / "pretrain").mkdir(exist_ok=True)
    (tmp_path / "pretrain" / "run.json").write_text(json.dumps({"cache": str(heard)}))
    return knows("model", trained_on=tmp_path / "pretrain")


def test_clips_that_were_heard_in_training_are_named(tmp_path, noise, monkeypatch):
    heard = [Clip(f"h{n}", str(tmp_path / f"h{n}.wav")) for n in range(3)]
    tested = [Clip(f"t{n}", str(tmp_path / f"t{n}.wav"), target=label(n)) for n in range(CLIPS)]
    for n, clip in enumerate(heard + tested):
        audio.save(clip.path, noise(12.0 if n < 3 else 2.0, seed=n))
    long = np.concatenate([noise(12.0, seed=1)[3 * audio.SAMPLE_RATE :]])
    audio.save(tested[5].path, 0.5 * long)
    for name, clips in (("heard", heard), ("tested", tested)):
        cache.prepare(
            Dataset(name, tuple(clips), Task("one-of", NAMES) if name == "tested" else None),
            tmp_path / name,
            workers=1,
        )
    listener = encoder(
        "model", loudness, trained_on=trained(tmp_path, tmp_path / "heard").trained_on
    )
    searches = []
    found = leaks.leaks
    monkeypatch.setattr(
        leaks, "leaks", lambda *given, **named: searches.append(given) or found(*given, **named)
    )
    seeds = [
        listener,
        dataclasses.replace(listener, seed=1),
        encoder("unknown", loudness, trained_on=tmp_path / "gone"),
    ]
    first, second, unknown = compare.compare(tmp_path / "tested", seeds, tmp_path / "run")["notes"]
    assert first == second
    assert first.endswith("are in this test: t5.")
    assert "could not be looked for" in unknown
    assert len(searches) == 1


def test_clips_that_were_heard_in_training_and_are_not_tested_are_not_named(
    tmp_path, noise, threads
):
    for name, seeds in (("heard", {"a": 1, "b": 2}), ("tested", {"a": 1, "b": 2, "c": 3})):
        (tmp_path / name).mkdir()
        for clip, seed in seeds.items():
            audio.save(tmp_path / name / f"{clip}.wav", noise(6.0, seed=seed))
        cache.prepare(datasets.load(tmp_path / name), tmp_path / f"{name}-cache", workers=1)
    data = changed(
        Cache(tmp_path / "tested-cache"), split=lambda number: ("train", "test", "valid")[number]
    )
    (note,) = notes_of(trained(tmp_path, tmp_path / "heard-cache"), data, tmp_path)
    assert note.endswith(": b.wav.")
    with (tmp_path / "leaks-heard-cache.csv").open(newline="") as stream:
        assert [row["second"] for row in csv.DictReader(stream)] == ["b.wav"]


def test_the_run_that_a_model_was_started_from_is_looked_at_too(data, tmp_path):
    for name, facts in (
        ("first", {"cache": str(data.path)}),
        ("second", {"cache": "gone", "init": str(tmp_path / "first" / "model")}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
    (note,) = notes_of(knows("model", trained_on=tmp_path / "second"), data, tmp_path)
    assert re.search(
        r"not available.*Started from .*first/model: pre-trained, without labels, on clips of this very cache",
        note,
    )


def test_another_cache_in_the_place_of_the_one_that_was_heard_is_not_taken_for_it(data, tmp_path):
    listener = trained(tmp_path, data.path)
    (tmp_path / "pretrain" / "run.json").write_text(
        json.dumps({"cache": str(data.path), "music": "of other clips"})
    )
    (note,) = notes_of(listener, data, tmp_path)
    assert "not available" in note


def test_leaks_are_found_between_caches_with_and_without_pitch_bands_and_other_mel_bands_are_said(
    tmp_path, noise
):
    for name in ("heard", "tested"):
        (tmp_path / name).mkdir()
        audio.save(tmp_path / name / "a.wav", noise(12.0, seed=1))
        audio.save(tmp_path / name / "c.wav", noise(12.0, seed=4 if name == "heard" else 5))
        audio.save(tmp_path / name / "b.wav", noise(12.0, seed=2 if name == "heard" else 3))
        config = (
            SpectrogramConfig(n_mels=64, n_pitch_bands=24)
            if name == "heard"
            else SpectrogramConfig()
        )
        cache.prepare(
            datasets.load(tmp_path / name), tmp_path / f"{name}-cache", config=config, workers=1
        )
    heard, tested = (Cache(tmp_path / f"{name}-cache") for name in ("heard", "tested"))
    for one, two in ((heard, tested), (tested, heard)):
        assert [(leak.first, leak.second) for leak in leaks.leaks(one, two)] == [("a.wav", "a.wav")]
    cache.prepare(
        datasets.load(tmp_path / "tested"),
        tmp_path / "coarse",
        config=SpectrogramConfig(n_mels=48),
        workers=1,
    )
    (note,) = notes_of(
        trained(tmp_path, tmp_path / "coarse"),
        changed(tested, split=lambda n: ("train", "valid", "test")[n % 3]),
        tmp_path,
    )
    assert re.search(r"could not be searched for clips of this test: .*bands is", note)


def test_a_cache_of_which_parts_are_missing_stops_no_comparison(data, tmp_path):
    heard = tmp_path / "heard"
    shutil.copytree(data.path, heard)
    for shard in heard.rglob("*.npy"):
        shard.unlink()
    (note,) = notes_of(trained(tmp_path, heard), data, tmp_path)
    assert re.search(r"could not be searched for clips of this test: .*00000\.npy", note)


def test_unknown_training_data_is_said(data, tmp_path):
    (note,) = compare.compare(data, [trained(tmp_path, tmp_path / "gone")], tmp_path / "run")[
        "notes"
    ]
    assert "could not be looked for" in note


def test_of_a_bundled_model_it_is_said_that_nobody_can_look(data, tmp_path):
    (listener,) = encoders("patchifier-base", data=data)
    (note,) = notes_of(listener, data, tmp_path)
    assert note.startswith("patchifier-base: comes without its training data")
    assert note.endswith("could not be looked for; its card lists the data.")


def test_training_on_the_tested_clips_is_said(data, tmp_path):
    (note,) = compare.compare(data, [trained(tmp_path, data.path)], tmp_path / "run")["notes"]
    assert "this very cache" in note


# --- progress ---


def test_every_step_of_an_encoder_shows_progress(data, tmp_path):
    counted = each_clip("counted", lambda data, index: np.array([index, index % 3], np.float32))
    shown = []

    def progress(title):
        return lambda done, total, note: shown.append((title, done, total, note))

    compare.compare(
        data, [Encoder("counted", counted), blind()], tmp_path / "run", progress=progress
    )
    assert list(dict.fromkeys(title for title, *_ in shown)) == [
        "majority",
        "counted",
        "blind",
        "paired differences",
    ]
    mine = [report[1:] for report in shown if report[0] == "counted"]
    steps = [done for done, *_ in mine]
    assert steps == sorted(steps)
    assert mine[-1][0] == mine[-1][1]
    notes = [note for *_, note in mine]
    for number in range(1, CLIPS + 1):
        assert f"features, {number} of {CLIPS}" in notes
    assert sum(note.startswith("probe of fold 5, ") for note in notes) == 7  # strengths
    assert "intervals" in notes


# --- the run folder ---


def test_a_second_comparison_replaces_the_first_and_no_other_run(data, tmp_path):
    compare.compare(data, [knows()], tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    compare.compare(data, [blind()], tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["state"], facts["encoders"]) == ("finished", ["blind"])
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"kind": "pretrain"}))
    with pytest.raises(RequestError, match="another command"):
        compare.compare(data, [knows()], tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RequestError, match="is not a run"):
        compare.compare(data, [knows()], tmp_path / "other")


# --- the page ---


def test_the_page_tells_what_the_results_say(data, tmp_path):
    parts = changed(data, subsets=lambda number: ("clean",) if number < 16 else ())
    compare.compare(parts, [knows(), blind()], tmp_path / "run")
    page = report.report(tmp_path / "run", tmp_path / "page").read_text()
    assert "Side by side: tones" in page
    assert re.search(
        r"<b>\+\d+\.\d \(\+\d+\.\d to \+\d+\.\d\)</b>", page
    )  # the paired interval leaves out 0
    assert "knows reaches <strong>100.0</strong>" in page
    assert "Subsets of the test clips" in page
    (table,) = (tmp_path / "page").glob("comparison-*.md")
    assert "| knows | 100.0 % |" in table.read_text()
    assert {path.suffix for path in (tmp_path / "page").glob("comparison-*")} == {
        ".md",
        ".png",
        ".svg",
    }


def test_a_damaged_result_is_named_on_the_page(data, tmp_path):
    compare.compare(data, [knows()], tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("{")
    assert (
        "results.json cannot be read"
        in report.report(tmp_path / "run", tmp_path / "page").read_text()
    )


# --- what is refused ---


def test_clips_without_targets_are_refused(data, tmp_path):
    without = changed(data)
    without.task = None
    with pytest.raises(RequestError, match="no targets"):
        compare.compare(without, [knows()], tmp_path / "run")


def test_an_unknown_probe_is_refused(data, tmp_path):
    with pytest.raises(RequestError, match="linear"):
        compare.compare(data, [knows()], tmp_path / "run", protocol="magic")

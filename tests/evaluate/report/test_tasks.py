"""The report on fine-tuning: tasks side by side, published figures, errors, and provenance."""

import json
import re

import numpy as np
import pytest

from patchifier.cache import Cache
from patchifier.evaluate import report
from patchifier.evaluate.report import page as page_module
from patchifier.evaluate.report.errors import predictions_of
from patchifier.evaluate.report.figures import convergence_figure
from patchifier.evaluate.report.folders import read_run
from patchifier.evaluate.report.tables import caution_text, learnt_nothing_notes
from tests.evaluate.report.test_report import (
    Page,
    cells_of,
    score,
    write_csv,
    write_finetune,
    write_json,
    write_run,
)

NAMES = ["calm", "wild"]


def tune(run, dataset, value=0.5, *, metric="accuracy", n=24, method="linear-probe", **facts):
    """Write a fine-tuning run of one method."""
    kind = {"accuracy": "one-of", "r2": "numbers"}[metric]
    task = {"kind": kind, "names": NAMES}
    shared = {"encoder": "patchifier", "metric": metric, "task": task, "split": "its own"}
    counts = {"train": 60, "valid": 10, "test": n}
    write_run(run, kind="finetune", dataset=dataset, **{**shared, "clips": counts, **facts})
    row = score("patchifier", method, value, n) | {"metric": metric}
    write_csv(run / method / "validation.csv", f"step,loss,{metric}", [(10, 0.5, 0.3)])
    write_json(run / method / "results.json", {"rows": [row]})
    return run


def set_config(run, **finetune):
    config = json.loads((run / "config.json").read_text())
    config["finetune"] |= finetune
    write_json(run / "config.json", config)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Report on everything in a folder, without sounds; give the page and its HTML.

    Figure 2 is drawn only for the tests about it, since it takes most of the time.
    """

    def make(*, curves=False, **options):
        if not curves:
            monkeypatch.setattr(page_module, "convergence_figure", lambda *given: None)
        path = report.report(tmp_path / "runs", tmp_path / "out", **{"sounds": False, **options})
        text = path.read_text(encoding="utf-8")
        return Page(text), text

    return make


def test_one_line_has_the_scores_of_a_method_on_every_task(tmp_path, made):
    tune(tmp_path / "runs" / "one", "moods", 0.5, n=24)
    tune(tmp_path / "runs" / "two", "feelings", 0.25, n=12, metric="r2")
    _, text = made()
    assert cells_of(text, "linear-probe") == ["50.0 %", "0.250"]
    assert "accuracy (%)" in text
    assert "R² (1 is perfect)" in text


def test_two_models_on_one_task_have_two_lines(tmp_path, made):
    for number, value in enumerate((0.4, 0.6)):
        facts = {"model weights": f"hash{number}"}
        tune(tmp_path / "runs" / f"run{number}", "moods", value, **facts)
    page, text = made()
    assert "40.0 %" in text
    assert "60.0 %" in text
    assert "weights hash0" in page.words
    assert "weights hash1" in page.words
    assert text.count("<br>24 test clips") == 1


def test_learning_rates_tell_lines_of_one_model_apart(tmp_path, made):
    for name, rates in (("fixed", []), ("chosen", [1e-5, 1e-3])):
        run = tune(tmp_path / "runs" / name, "moods", 0.5, **{"model weights": "same"})
        set_config(run, learning_rates=rates)
    page, _ = made()
    assert "learning rate 1e-05" in page.words
    assert "learning rate best on validation of 1e-05, 0.001" in page.words


def test_the_caution_is_about_the_widest_interval_that_is_shown():
    rows = [
        {"metric": "accuracy", "n": 28, "low": 0.5 - half, "high": 0.5 + half, **more}
        for half, more in [(0.11, {}), (0.18, {}), (0.05, {}), (0.3, {"learnt_nothing": "calm"})]
    ]
    assert "± 18 points" in caution_text(rows)
    assert "± 0.18" in caution_text([row | {"metric": "r2"} for row in rows])
    assert not caution_text(rows[3:])


def test_the_caution_leads_to_the_paired_differences_where_there_are_some(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods")
    assert made()[1].count("Which differences hold up") == 0
    found = {"first": "full", "second": "linear-probe", "value": 0.1, "low": 0.0, "high": 0.2}
    write_json(run / "differences.json", [found])
    assert made()[1].count("Which differences hold up") == 2


# --- baselines of a run ---


def with_controls(run, value=0.25):
    rows = [score("majority", "none", value), score("random", "linear-probe", 0.4)]
    write_json(run / "controls" / "results.json", {"rows": rows})
    write_json(run / "controls" / "random" / "results.json", {"rows": rows[1:]})


def test_baselines_belong_to_their_run(tmp_path, made):
    with_controls(tune(tmp_path / "runs" / "run", "moods"))
    page, text = made()
    assert "task not stated" not in page.words
    assert text.count("<br>24 test clips") == 1
    assert text.count('class="value">40.0 %') == 1


def test_a_baseline_that_needs_no_training_is_shown_once_for_two_runs(tmp_path, made):
    for name in ("one", "two"):
        with_controls(tune(tmp_path / "runs" / name, "moods"))
    _, text = made()
    assert text.count('class="value">25.0 %') == 1


def test_a_model_that_learnt_nothing_has_no_interval_and_equal_predictions_are_said(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods", method="full")
    row = score("patchifier", "full", 0.5, 24) | {"low": 0.5, "high": 0.5}
    row |= {"learnt_nothing": "every clip is called calm"}
    write_json(run / "full" / "results.json", {"rows": [row]})
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 24, "equal_predictions": True}
    write_json(run / "differences.json", [{"first": "full", "second": "linear-probe", **nothing}])
    _, text = made()
    assert '<span class="interval">learnt nothing: every clip is called calm</span>' in text
    assert "50.0 to 50.0" not in text
    assert "<strong>50.0 %</strong> accuracy (learnt nothing: every clip is called calm)" in text
    assert "--finetune.learning_rates" in text
    assert "<td>+0.0 points</td><td>equal predictions</td>" in text.replace("\n", "")
    assert "learnt nothing" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(("value", "advised"), [(0.25, True), (0.2, True), (0.26, False)])
def test_of_models_below_the_majority_it_is_said_what_to_try(tmp_path, made, value, advised):
    with_controls(tune(tmp_path / "runs" / "run", "moods", value))
    assert ("--finetune.learning_rates" in made()[1]) == advised
    rows = [score("mine", "full", value), score("random", "linear-probe", 0.1)]
    rows.append(score("majority", "none", 0.25))
    assert ("--finetune.learning_rates" in " ".join(learnt_nothing_notes(rows))) == advised
    assert not learnt_nothing_notes(rows[:2])
    assert not learnt_nothing_notes(rows[1:])


def test_the_difference_from_random_weights_by_the_same_method_is_told(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods", encoder="mine")
    with_controls(run)
    found = {"first": "mine, linear-probe", "second": "random, linear-probe", "n": 24}
    found |= {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.01, "equal_predictions": False}
    write_json(run / "controls" / "differences.json", [found])
    _, text = made()
    assert "moods: mine, linear-probe <b>beats</b> random, linear-probe" in text
    assert "+5.0 to +15.0" in text


def test_a_model_is_called_by_its_name_and_stands_first(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods", encoder="mine")
    with_controls(run)
    results = run / "linear-probe" / "results.json"
    results.write_text(results.read_text().replace('"patchifier"', '"mine"'))
    _, text = made()
    table = text[text.index('table class="scores"') :]
    assert re.findall(r'<tr class="first( ours)?"><td>([^<]*)', table)[0] == (" ours", "mine")
    assert "<dt>mine</dt><dd>the model of this report</dd>" in text
    assert "the linear probe reaches <strong>50.0 %</strong>" in text


def test_what_a_run_does_not_say_is_left_out(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods", seed=7, hours=1.25)
    facts = json.loads((run / "run.json").read_text())
    del facts["parameters"]
    write_json(run / "run.json", facts)
    page, _ = made()
    words = page.words[page.words.index("How this was made") :]
    assert "nan" not in words
    assert "?" not in words
    for text in (
        "60 training, 10 validation, 24 test clips",
        "1.2 hours of music",
        "patchifier demo",
    ):
        assert text in words


def test_a_model_is_named_by_its_hash(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods", precision="bf16", **{"model weights": "abc"})
    (run / "linear-probe" / "model").mkdir()
    (run / "linear-probe" / "model" / "model.safetensors").write_bytes(b"weights")
    page, _ = made()
    digest = "9a129038d9a00aed"  # printf weights | sha256sum
    assert digest in page.words
    assert "bf16, weights in float32" in page.words


# --- published figures ---

GTZAN, EMOMUSIC, WARNING = "72.3 %", "0.486", "never ranked with ours"


@pytest.mark.parametrize(
    ("dataset", "metric", "shown", "absent"),
    [
        ("gtzan", "accuracy", GTZAN, EMOMUSIC),
        ("gtzan:folds", "accuracy", GTZAN, EMOMUSIC),
        ("emomusic", "r2", EMOMUSIC, GTZAN),
        ("moods", "accuracy", "", WARNING),
        ("gtzan (stand-in)", "accuracy", "no figure on this page is a result", WARNING),
        ("gtzan:folds (stand-in)", "accuracy", "no figure on this page is a result", WARNING),
        ("emomusic", "accuracy", "", WARNING),
    ],
)
def test_published_figures_stand_beside_their_task_alone(
    dataset, metric, shown, absent, tmp_path, made
):
    tune(tmp_path / "runs" / "run", dataset, metric=metric)
    page, _ = made()
    assert shown in page.words
    assert absent not in page.words
    assert "Published" not in (tmp_path / "out" / "table.md").read_text()


def test_a_published_figure_is_in_the_column_of_its_task(tmp_path, made):
    tune(tmp_path / "runs" / "one", "moods", n=99)
    tune(tmp_path / "runs" / "two", "gtzan")
    _, text = made()
    line = next(line for line in text.split("<tr") if "<td>S3T</td>" in line)
    assert re.findall(r"<td>([^<]*)</td>", line) == ["S3T", "", "81.1 %"]


# --- curves ---


def test_curves_of_all_seeds_are_drawn(tmp_path):
    run = tune(tmp_path / "run", "moods")
    for seed in (1, 2):
        path = run / "linear-probe" / f"fold-None-seed-{seed}" / "validation.csv"
        write_csv(path, "step,loss,accuracy", [(10, 0.5, 0.2), (20, 0.4, 0.4)])
    figure = convergence_figure(read_run(run, tmp_path, []), [], [])
    assert figure is not None
    ends = [tuple(line.get_ydata()) for line in figure.axes[0].lines]
    assert ends.count((20.0, 40.0)) == 2
    assert figure.axes[0].get_title(loc="left") == "moods: while training"


@pytest.mark.parametrize(
    ("patience", "said"), [(50, "after 50 steps"), (10**9, "No curve was cut")]
)
def test_the_page_says_whether_curves_were_cut_short(patience, said, tmp_path, made):
    set_config(tune(tmp_path / "runs" / "run", "moods"), patience=patience)
    page, _ = made(curves=True)
    assert said in page.words


# --- errors ---

PREDICTED = [  # of three true calm, one wild
    ("a", "calm", 0.9, 0.1), ("b", "calm", 0.2, 0.8), ("c", "calm", 0.45, 0.55), ("d", "wild", 0.3, 0.7),
]  # fmt: skip


def write_predictions(run, rows, header="id,group,target,calm,wild"):
    lines = [(name, name, *rest) for name, *rest in rows]
    write_csv(run / "linear-probe" / "predictions.csv", header, lines)


def test_confusions_are_counted_and_the_surest_error_comes_first(tmp_path, made):
    write_predictions(tune(tmp_path / "runs" / "run", "moods"), PREDICTED)
    page, text = made()
    rows = re.findall(r"<th scope=row>(\w+)</th>(.*?)</tr>", text, re.DOTALL)
    counts = {name: re.findall(r">(\d+|\d+ %)</td>", cells) for name, cells in rows}
    assert counts == {"calm": ["1", "2", "33 %"], "wild": ["0", "1", "100 %"]}
    assert "2 of 4 test clips are right" in page.words
    listed = text[text.index("Wrong, and most certain") :]
    assert listed.index("80 %") < listed.index("55 %")


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path, made):
    run, names = tune(tmp_path / "runs" / "run", "moods"), [f"class{n}" for n in range(25)]
    sure = np.eye(25)[[1, 1, 0]].tolist()
    rows = [(f"clip{n}", f"class{n // 2}", *outputs) for n, outputs in enumerate(sure)]
    write_predictions(run, rows, ",".join(["id", "group", "target", *names]))
    _, text = made()
    assert '<table class="matrix">' not in text
    assert re.search(r"<td>class0</td><td>class1</td><td>2</td>", text)


def test_a_regression_is_drawn_and_its_largest_errors_are_listed(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "feelings", metric="r2")
    path = run / "linear-probe" / "predictions.csv"
    rows = [("near", "g", '"[0.5, -0.5]"', 0.4, -0.5), ("far", "g", '"[-1.0, 1.0]"', 0.9, -1.0)]
    write_csv(path, "id,group,target,calm,wild", rows)
    _, text = made()
    assert (tmp_path / "out" / "predicted.png").exists()
    listed = text[text.index("The largest errors") :]
    assert listed.index("calm −1.00, wild +1.00") < listed.index("calm +0.50, wild −0.50")


def test_an_error_can_be_listened_to(tmp_path, small_cache, made):
    clips = Cache(small_cache).clips
    run = tune(tmp_path / "runs" / "run", "moods", cache=str(small_cache))
    write_predictions(run, [(clips[0].id, "calm", 0.2, 0.8), ("gone", "calm", 0.3, 0.7)])
    page, _ = made(sounds=True)
    assert sum(link.startswith("data:audio/mpeg;") for link in page.links) == 1
    assert "its cache is not there" in page.words
    assert "see whether their licence allows that" in page.words
    page, _ = made(sounds=False)
    assert "audio" not in page.tags


def test_errors_are_those_of_the_run_with_most_test_clips(tmp_path):
    few, many = (tune(tmp_path / name, "moods") for name in ("a", "b"))
    other = tune(tmp_path / "c", "moods", encoder="random")
    write_predictions(few, PREDICTED[:2])
    write_predictions(many, PREDICTED[:3])
    write_predictions(other, PREDICTED)
    (found,) = predictions_of([read_run(run, tmp_path, []) for run in (few, many, other)])
    assert found.ids == ["a", "b", "c"]


def test_damaged_predictions_are_no_error(tmp_path, made):
    run = tune(tmp_path / "runs" / "run", "moods")
    write_predictions(run, [("a", "calm", "nan", "x")])
    assert "Wrong, and most certain" not in made()[0].words


# --- comparisons ---


def test_a_model_of_this_report_and_its_random_weights_have_names(tmp_path, made):
    model = tmp_path / "runs" / "pretrain" / "model"
    write_run(model.parent, kind="pretrain", dataset="songs")
    rows = [score(name, "linear", 0.5) for name in (str(model), f"random:{model}", "mfcc")]
    for row in rows:
        row |= {"subset": "", "condition": "", "seconds_per_second": 0.12}
    compared = write_run(tmp_path / "runs" / "compare", kind="compare", dataset="moods")
    differences = [{"first": str(model), "second": f"random:{model}", "value": 0.1, "p_holm": 0.5}]
    results = {"rows": rows, "differences": differences, "protocol": "linear"}
    write_json(compared / "results.json", results)
    rows[1]["note"] = "mean of 5 draws, random weights in the architecture of x, cls"
    write_json(compared / "results.json", results)
    _, text = made()
    section = text[text.index("Vectors by the same probe: moods") :]
    assert "random:pretrain: mean of 5 draws, random weights in the architecture of x" in section
    names = re.findall(r"<tr><td>([^<]*)</td>", section)
    assert names[:3] == ["pretrain", "random:pretrain", "mfcc"]
    assert "<td>120</td>" in section
    assert "+10.0" in section


@pytest.mark.parametrize(
    "other", [{"parameters": 5}, {"model weights": "another"}, {"model weights": "same"}]
)
def test_a_score_of_another_model_than_the_pre_trained_one_is_told_by_its_name(
    tmp_path, made, other
):
    facts = {"model weights": "same"} if "model weights" in other else {}
    write_run(tmp_path / "runs" / "tiny", kind="pretrain", dataset="songs", **facts)
    tune(tmp_path / "runs" / "tuned", "moods", encoder="big", **other)
    _, text = made()
    apart = other != facts
    assert ("A model of 7.3 million parameters, tiny, trained" in text) == apart
    assert ("linear probe of patchifier reaches" in text) == apart
    assert ("Does pre-training without labels on songs help on moods?" in text) == (not apart)


def test_of_several_pre_trained_models_the_one_that_was_tuned_is_described(tmp_path, made):
    for number, name in enumerate(("a", "b", "c")):
        facts = {"parameters": 1000 + number, "model weights": name}
        write_run(tmp_path / "runs" / name, kind="pretrain", dataset="songs", **facts)
    tune(tmp_path / "runs" / "tuned", "moods", **{"model weights": "b"})
    assert "A model of 1,001 parameters, trained" in made()[1]


# --- the whole ---


def fine_tunings(text):
    """Terms and texts of the rows about fine-tuning."""
    return re.findall("<dt>(fine-tuning[^<]*)</dt><dd>([^<;]*)", text)


def test_settings_say_of_which_test_they_are(tmp_path, made):
    for name in ("moods", "genres"):
        set_config(tune(tmp_path / "runs" / name, name), patience=len(name))
    assert [term for term, _ in fine_tunings(made()[1])] == [
        "fine-tuning: genres",
        "fine-tuning: moods",
    ]


def test_settings_of_two_tasks_or_runs_of_one_data_set_say_which_they_are(tmp_path, made):
    for number, name in enumerate(("a", "b", "c")):
        task = {"kind": "one-of", "names": ["loud", "soft"] if name == "c" else NAMES}
        run = tune(tmp_path / "runs" / name, "moods", encoder=name, task=task)
        set_config(run, patience=number)
    tune(tmp_path / "runs" / "d", "moods", encoder="d")
    set_config(tmp_path / "runs" / "d", patience=1)
    assert [term for term, _ in fine_tunings(made()[1])] == [
        "fine-tuning: moods; calm, wild; a",
        "fine-tuning: moods; calm, wild; b, d",
        "fine-tuning: moods; loud, soft",
    ]


def test_the_question_names_the_data(tmp_path, made):
    write_finetune(tmp_path / "runs" / "old", "patchifier", 0.5)  # it names no data set
    assert "<h1>What are the vectors of a model worth on this task?</h1>" in made()[1]
    write_run(tmp_path / "runs" / "pretrain", kind="pretrain", dataset="songs")
    tune(tmp_path / "runs" / "run", "moods")
    assert "<h1>Does pre-training without labels on songs help on moods?</h1>" in made()[1]


def test_steps_of_the_paper_are_listed_with_their_times(tmp_path, made):
    tune(tmp_path / "runs" / "run", "moods")
    steps = [{"section": "4.4", "command": "patchifier pretrain X", "seconds": 90.0}, "no step"]
    write_json(tmp_path / "runs" / "steps.json", steps)
    page, _ = made()
    assert "patchifier pretrain X" in page.words
    assert "90 s" in page.words

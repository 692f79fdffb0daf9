"""The report: what it draws, what it says of unfinished runs, and that its page stands alone."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from patchifier import config, predictors
from patchifier.config import RequestError
from patchifier.evaluate import report
from patchifier.evaluate.report.figures import curves_figure, health_figure, predictors_in
from patchifier.evaluate.report.folders import read_columns, read_results, read_run
from patchifier.evaluate.report.reconstruction import LEVEL_LABEL
from patchifier.train import pictures
from patchifier.train.references import Kriging

N, M, W = 10, 64, 32
METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")


# --- Synthetic run folders, in the formats the package writes ---


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_run(run, **facts):
    common = {
        "name": run.name,
        "command": "patchifier demo",
        "started": "2026-01-02T03:04:05",
        "seconds": 61.0,
        "machine": "two cores",
        "versions": {"numpy": "2.0"},
        "cache": "cache",
        "clips": {"train": 77, "validation": 5},
        "parameters": 7_300_000,
        "state": "finished",
    }
    write_json(run / "run.json", {**common, **facts})
    write_json(run / "config.json", config.to_dict(config.Config()))
    return run


def write_metrics(folder, steps):
    header = "step,epoch,clips_per_s,learning_rate,loss,gradient_norm"
    rows = [(step, step / 4, 90.0, 1e-4, 0.01 + 0.2 / step, 0.5) for step in range(1, steps + 1)]
    write_csv(folder / "metrics.csv", header, rows)


def reconstructions():
    random = np.random.default_rng(0)
    arrays = {"original": random.uniform(-1, 0.3, (N, M, W)).astype(np.float32)}
    for ratio in (0.25, 0.9):
        masked = np.zeros(N, np.uint8)
        masked[: round(ratio * N)] = 1
        arrays[f"masked_{ratio}"] = masked
        arrays[f"reconstructed_{ratio}"] = arrays["original"] + np.float32(0.05)
    hertz = json.dumps(np.geomspace(50, 10_000, M).tolist())
    facts = {"clip": "clip-7", "title": "Ca$h $ong", "frame_s": "0.02322", "scale": "0.01"}
    return arrays, facts | {"band_hz": hertz, "silence": "-1.0"}


VALIDATED = {
    "masked_mse": 0.0225,
    "mean_patch_mse": 0.04,
    "visible_mean_mse": 0.035,
    "interpolation_mse": 0.03,
    "shrunk_interpolation_mse": 0.029,
    "kriging_mse": 0.028,
    "shuffled_mse": 0.024,
    "equal_positions_mse": 0.023,
    "within_variance": 0.02,
    "between_variance": 0.4,
    "onset_f": 0.1,
}


def write_validation(run, header, *rows):
    write_csv(run / "stage-two" / "validation.csv", header, rows)


def write_pretrain(run, *, picture=False, **facts):
    write_run(run, kind="pretrain", **facts)
    for stage in ("stage-one", "stage-two"):
        write_metrics(run / stage, 60)
    losses = [(30, 0.02, 0.04), (60, 0.01, 0.04)]
    write_csv(run / "stage-one" / "validation.csv", "step,mse,mean_patch_mse", losses)
    header = ",".join(["step", *VALIDATED, "embedding_std,effective_rank"])
    rows = [(step, *VALIDATED.values(), 0.5 + step / 1000, 20 + step / 10) for step in (20, 40, 60)]
    write_validation(run, header, *rows)
    if not picture:
        return run
    arrays, strings = reconstructions()
    save_file(arrays, run / "stage-two" / "reconstructions.safetensors", metadata=strings)
    return run


def score(encoder, method, value, n=24):
    names = {"encoder": encoder, "method": method, "metric": "accuracy"}
    return {**names, "value": value, "n": n, "low": value - 0.2, "high": value + 0.1}


def difference(first, second, value, low, high):
    return {"first": first, "second": second, "value": value, "low": low, "high": high, "n": 24}


def write_finetune(run, encoder, value):
    task = {"kind": "one-of", "names": ["calm", "wild"]}
    write_run(run, kind="finetune", encoder=encoder, task=task, metric="accuracy", split="by album")
    rows = [score(encoder, method, value + 0.01 * index) for index, method in enumerate(METHODS)]
    for row, method in zip(rows, METHODS, strict=True):
        write_metrics(run / method, 30)
        curve = [(step, 0.5, value - 0.1 / step) for step in (10, 20, 30)]
        write_csv(run / method / "validation.csv", "step,loss,accuracy", curve)
        write_json(run / method / "results.json", {"rows": [row]})
    return rows


def write_demo(folder):
    write_pretrain(folder / "pretrain", picture=True)
    rows = write_finetune(folder / "tuned", "patchifier", 0.623)
    rows += write_finetune(folder / "tuned-random", "random", 0.456)
    rows += [score("majority", "none", 0.25), score("mfcc", "logistic", 0.541)]
    rows += [score("patchifier", "logistic", 0.777, n=96)]
    differences = [
        difference("ours", "random", 0.17, 0.02, 0.3),
        difference("ours", "mfcc", 0.08, -0.03, 0.2),
        difference("majority", "ours", -0.3, -0.5, -0.1),
        difference("ours", "mel-stats", 0.1, 0.0, 0.2),
    ]
    results = {
        "seconds": 90,
        "parameters": 7_300_000,
        "rows": rows,
        "stage_two": dict(list(VALIDATED.items())[:4]),
        "notes": ["Small & quick."],
        "differences": differences,
    }
    write_json(folder / "results.json", results)
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch, the text, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.images, self.open, self.words = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        fetched = ("src", "href", "srcset", "data", "action")
        self.links += [values[name] for name in fetched if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "img", "br", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder of the demo's page."""
    folder = tmp_path_factory.mktemp("report")
    return report.report([write_demo(folder / "demo")], folder / "out").parent


@pytest.fixture(scope="module")
def page(demo):
    return Page((demo / "index.html").read_text(encoding="utf-8"))


@pytest.fixture
def told(tmp_path):
    """Report on folders, and give the page."""
    return lambda *paths: Page(report.report(list(paths), tmp_path / "out").read_text())


FIGURES = ("reconstruction", "figure-2", "losses", "health")


# --- The page and its files ---


def test_page_stands_alone(demo, page):
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert not page.open
    assert len(page.images) == 4
    assert all(link.startswith(("data:image/", "data:audio/mpeg;")) for link in page.links)
    assert sum(link.startswith("data:audio/") for link in page.links) == 3  # original, two ratios
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert not re.search(r"@import|url\(|<script|<link|https?://", text)


def test_reconstruction_keeps_the_page_small(demo, page):
    (embedded,) = (image["src"] for image in page.images if "image/png" in image["src"])
    beside = demo / "reconstruction.png"
    assert len(embedded) < 0.6 * beside.stat().st_size  # in 256 colours, base64 included
    small = io.BytesIO(base64.b64decode(embedded.split(",")[1]))
    colours, few = (matplotlib.image.imread(picture)[..., :3] for picture in (beside, small))
    assert colours.shape == few.shape
    assert np.mean(np.abs(colours - few)) < 0.03
    assert np.percentile(np.abs(colours - few)[-100:], 99.5) < 0.1  # both colour scales are whole


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn(demo, name):
    picture = matplotlib.image.imread(demo / f"{name}.png")
    height, width = picture.shape[:2]
    assert width == 1500
    assert height > 350
    assert 0.002 < np.mean(picture[..., :3].min(axis=2) < 0.5) < 0.9  # ink, and paper
    assert ElementTree.parse(demo / f"{name}.svg").getroot().tag.endswith("svg")


def test_nothing_half_written_is_left(demo):
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    tables = {"index.html", "table.csv", "table.md"}
    assert {path.name for path in demo.iterdir()} == tables | figures


NUMBERS = (
    "62.3 %|42.3 to 72.3|45.6 %|54.1 %|25.0 %|15.0 dB|20.0 dB|7.3 million|77 clips|7,300,000|"
    'patchifier demo|two cores|numpy 2.0|61 s|Small & quick.|"mask_ratio": 0.75|Ca$h $ong'
).split("|")


@pytest.mark.parametrize("text", NUMBERS)
def test_page_states_the_numbers(page, text):
    assert text in page.words


def test_a_whole_run_misses_nothing_and_is_not_ranked_with_others(demo, page):
    assert "What is missing" not in page.words
    assert "72.3" not in (demo / "table.md").read_text().split("to 72.3")[0]


def test_a_score_in_demo_and_run_is_told_once_and_borrows_no_split_of_other_clips(demo):
    rows = list(csv.DictReader((demo / "table.csv").read_text().splitlines()))
    assert len(rows) == 11
    assert {row["source"] for row in rows} == {"demo"}
    few = [row["encoder"] for row in rows if row["n"] == "24"]
    assert few == ["patchifier"] * 4 + ["random"] * 4 + ["mfcc", "majority"]
    assert [row["method"] for row in rows if row["encoder"] == "random"] == list(METHODS)
    tests = {row["n"]: row["test"] for row in rows}
    assert tests == {"24": "one-of: calm, wild; by album", "96": "one-of: calm, wild"}


def test_a_method_of_a_demo_has_one_line_for_both_of_its_tests(tmp_path, told):
    rows = write_finetune(tmp_path / "demo" / "tuned", "patchifier", 0.5)
    wide = {**rows[0], "n": 96, "value": 0.75}
    run = tmp_path / "demo" / "probe"
    shutil.copytree(tmp_path / "demo" / "tuned", run)
    for method in METHODS[1:]:
        shutil.rmtree(run / method)
    write_json(run / METHODS[0] / "results.json", {"rows": [wide]})
    write_json(tmp_path / "demo" / "results.json", {"rows": [wide, *rows[1:]]})
    told(tmp_path / "demo")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert cells_of(text, "linear-probe") == ["75.0 %", "50.0 %"]


def test_a_finished_run_of_one_method_misses_nothing(tmp_path, told):
    write_finetune(tmp_path / "run", "patchifier", 0.5)
    for method in METHODS[1:]:
        shutil.rmtree(tmp_path / "run" / method)
    assert "What is missing" not in told(tmp_path / "run").words


def test_different_clips_are_columns_of_their_own(demo, page):
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert APART in page.words
    assert text.index("<br>96 test clips") < text.index("<br>24 test clips")
    assert cells_of(text, "logistic") == ["77.7 %", ""]
    assert cells_of(text, "full") == ["", "65.3 %"]
    caution = "With 24 test clips the 95 % intervals reach ± 15 points"
    assert caution in page.words
    tables = (demo / "table.md").read_text(encoding="utf-8").split("\n\n**")
    assert ["77.7" in table for table in tables] == [True, False]
    assert caution in tables[1]


APART = "compare within a column only"


def cells_of(text, method):
    """Scores in the first line of a method, one for each column; "" where it was not tested."""
    body = text[text.index("<tbody>", text.index("<h2>Scores</h2>")) :]
    line = next(line for line in body.split("<tr") if f"<td>{method}" in line)
    cells = re.findall(r"<td>(.*?)</td>", line, re.DOTALL)[2:]
    return [(re.findall(r'class="value">([^<]*)', cell) or [""])[0] for cell in cells]


def test_equal_clips_are_one_column(tmp_path, told):
    rows = [score("patchifier", method, 0.5) for method in METHODS]
    write_json(tmp_path / "run" / "results.json", {"rows": rows})
    assert APART not in told(tmp_path / "run").words


def test_beats_only_when_the_interval_leaves_out_zero(page):
    for text in (
        "ours beats random",
        "+17.0 points",
        "+2.0 to +30.0",
        "ours cannot be told apart from mfcc",
        "−3.0 to +20.0",
        "majority is beaten by ours",
        "ours cannot be told apart from mel-stats",  # an interval that touches 0
    ):
        assert text in page.words, text
    assert len(re.findall(r"\bbeats\b", page.words)) == 1


def test_report_is_reproducible(tmp_path):
    run = write_pretrain(tmp_path / "run")
    for stage in ("stage-one", "stage-two"):
        (run / stage / "metrics.csv").unlink()
    first, second = (report.report(run, tmp_path / out).read_bytes() for out in ("first", "second"))
    assert first == second


# --- Runs that are not whole ---


def test_unfinished_runs_are_drawn_and_named(tmp_path, told):
    runs = tmp_path / "runs"
    going = write_run(runs / "going", kind="pretrain", state="running")
    write_metrics(going / "stage-one", 3)
    with (going / "stage-one" / "metrics.csv").open("a") as file:
        file.write("4,1.0,90.0,1e-4,0.0")  # a line still being written
    write_run(runs / "empty", kind="pretrain", state="interrupted")
    facts = {"kind": "finetune", "encoder": "patchifier", "metric": "accuracy"}
    tuned = write_run(runs / "tuned", **facts, state="running")
    write_csv(tuned / "full" / "validation.csv", "step,loss,accuracy", [(10, 0.7, 0.4)])
    words = told(runs).words
    notice = words[words.index("What is missing") : words.index("How this was made")]
    for text in (
        "going: it is still running, or was killed",
        "stage-two: no step yet",
        "empty: it was interrupted",
        "tuned: ",
        "full: no test score yet",
    ):
        assert text in notice, text
    assert (tmp_path / "out" / "losses-going.png").exists()
    assert (tmp_path / "out" / "figure-2.png").exists()
    assert len(read_columns(going / "stage-one" / "metrics.csv")["step"]) == 3


def test_damaged_files_are_named_and_the_rest_is_drawn(tmp_path, told):
    run = write_pretrain(tmp_path / "runs" / "broken")
    (run / "run.json").write_text('{"kind": "pre')
    (run / "stage-two" / "reconstructions.safetensors").write_bytes(b"not tensors")
    rows = [(10, "nan", ""), ("x", 1, 1), (20, 0.01, 0.4)]
    write_validation(run, "step,masked_mse,embedding_std", *rows)
    words = told(tmp_path / "runs").words
    assert "broken/run.json cannot be read" in words
    assert "cannot read reconstructions" in words
    assert (tmp_path / "out" / "losses.png").exists()
    assert (tmp_path / "out" / "health.png").exists()


def test_runs_of_one_name_keep_their_figures_apart(tmp_path, told):
    first, second = (tmp_path / name for name in ("first", "second"))
    for parent in (first, second):
        write_metrics(write_run(parent / "run", kind="pretrain") / "stage-one", 9)
    page = told(first, second / "run", second)
    assert "run (first/run)" in page.words
    assert "run (second/run)" in page.words
    assert len(list((tmp_path / "out").glob("losses-*.png"))) == 2
    assert len(page.images) == 2


def test_scores_that_are_not_accuracies_and_go_below_zero(tmp_path, told):
    row = score("patchifier", "full", -0.2, n=9) | {"metric": "r2", "low": None, "high": 0.1}
    task = {"kind": "numbers", "names": ["valence"]}
    facts = {"kind": "finetune", "encoder": "patchifier", "metric": "r2", "task": task}
    write_run(tmp_path / "run", **facts)
    write_json(tmp_path / "run" / "full" / "results.json", {"rows": [row]})
    words = told(tmp_path / "run").words
    for text in ("−0.200", "– to 0.100", "numbers: valence", "no validation yet"):
        assert text in words, text


def test_no_run_folder_is_refused(tmp_path, told):
    said = r"no run folder under .*nowhere.*expected a folder with run\.json"
    with pytest.raises(RequestError, match=said):
        told(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    run = write_run(tmp_path / "run", kind="pretrain")
    with pytest.raises(RequestError, match="it is a file"):
        report.report([run], tmp_path / "file")
    (tmp_path / "nothing").mkdir()
    words = told(run, tmp_path / "nothing").words
    assert f"Nothing to report on under {tmp_path / 'nothing'}" in words


def test_text_is_escaped(tmp_path, told):
    evil, folder = "<script>alert('x')</script>", tmp_path / "demo"
    facts = dict.fromkeys(("name", "command", "machine", "state"), evil)
    write_metrics(write_run(folder / "run", kind="pretrain", **facts) / "stage-one", 9)
    rows = [{**score(evil, evil, 0.5), "metric": evil, "n": evil}]
    differences = [{"first": evil, "second": evil}]
    results = {"rows": rows, "notes": [evil], "differences": differences}
    write_json(folder / "results.json", results)
    page = told(folder)
    assert "script" not in page.tags
    assert evil in page.words
    assert "<script" not in (tmp_path / "out" / "table.md").read_text()


def test_settings_of_a_run_of_the_first_edition_are_read_by_the_names_of_today(tmp_path):
    run, problems = write_run(tmp_path / "run", kind="pretrain"), []
    write_json(run / "config.json", config.stored_form(config.Config()))
    found = read_run(run, tmp_path, problems)
    settings = config.update(config.Config(), found.config)
    assert (settings, problems) == (config.Config(), [])
    assert "learning_rate" in found.config["pretrain"]["stage_one"]


# --- Figures by themselves ---


def test_every_predictor_lies_inside_the_axes(tmp_path):
    run = write_pretrain(tmp_path / "run")
    header = "step,masked_mse,mean_patch_mse,visible_mean_mse,interpolation_mse"
    write_validation(run, header, (60, 0.0225, 0.04, 0.001, 0.0005))
    figure = curves_figure(read_run(run, tmp_path, []))
    assert figure is not None
    assert figure.axes[1].get_ylim()[0] < 100 * 0.0005**0.5


def test_health_of_a_run_before_order_was_measured_has_two_panels(tmp_path):
    run = write_pretrain(tmp_path / "run")

    def titles():
        axes = health_figure(read_run(run, tmp_path, [])).axes
        return [title for one in axes if (title := one.get_title(loc="left"))]

    embeddings = ["Spread of the embeddings", "Dimensions in use"]
    assert titles() == ["Use of order", "Variance drawn", "Onsets drawn", *embeddings]
    write_validation(run, "step,masked_mse,embedding_std,effective_rank", (60, 0.0225, 0.5, 20))
    assert titles() == embeddings
    write_validation(run, "step,masked_mse", (60, 0.0225))
    assert health_figure(read_run(run, tmp_path, [])) is None


def test_the_interpolation_of_older_runs_was_the_shrunk_one():
    new = predictors_in(["interpolation_mse", "shrunk_interpolation_mse"])
    old = predictors_in(["step", "visible_mean_mse", "interpolation_mse"])
    assert new["interpolation_mse"][1] != new["shrunk_interpolation_mse"][1]
    assert list(old) == ["visible_mean_mse", "interpolation_mse"]
    assert old["interpolation_mse"] == new["shrunk_interpolation_mse"]


def test_reconstructions_are_read_and_drawn(tmp_path):
    run = write_pretrain(tmp_path / "run", picture=True)
    arrays, facts = report.read_reconstructions(run / "stage-two" / "reconstructions.safetensors")
    figure = report.reconstruction_figure(arrays, facts)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "Original: Ca$h $ong"
    masked = arrays["masked_0.9"].astype(bool)
    mse = predictors.untrained_mse(arrays["original"], masked)["interpolation"]
    assert f"interpolation {100 * mse**0.5:.1f} dB" in titles[4].splitlines()[-1]
    said = "90 % masked: 9 of 10 patches, predicted with an error of 5.0 dB RMSE"
    assert said in titles[4]
    labels = {axes.get_xlabel().strip() for axes in figure.axes}
    assert labels >= {"Time (s)", LEVEL_LABEL, "Absolute error (dB)"}
    given, filled = (figure.axes[index].images[0].get_array() for index in (0, 2))
    assert filled.shape == (M, N * W)
    hidden = slice(0, 2 * W)  # the first two of ten patches are masked at 25 %
    assert np.allclose(filled[:, hidden] - given[:, hidden], 5.0, atol=1e-3)
    assert np.array_equal(filled[:, 2 * W :], given[:, 2 * W :])
    report.save_figure(Figure(figsize=(1, 1)), tmp_path / "picture.pdf")
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_of_a_loud_and_a_quiet_clip_have_one_scale():
    (loud, facts), (quiet, _) = reconstructions(), reconstructions()
    quiet = {name: values - values.dtype.type("mask" not in name) for name, values in quiet.items()}
    limits = [
        [image.get_clim() for axes in figure.axes for image in axes.images]
        for figure in (report.reconstruction_figure(each, facts) for each in (loud, quiet))
    ]
    assert limits[0] == limits[1]
    assert set(limits[0]) == {(-60.0, 30.0), (0.0, 30.0)}


@pytest.mark.slow
def test_kriging_stands_beside_the_model_where_the_run_has_it(tmp_path, told):
    run = write_pretrain(tmp_path / "run", picture=True)
    assert "kriging" in told(tmp_path / "run").words
    arrays, facts = reconstructions()
    more = {"kriging_mse": json.dumps({"0.25": 0.0049, "0.9": 0.0064})}
    path = run / "stage-two" / "reconstructions.safetensors"
    save_file(arrays, path, metadata=facts | more)
    words = told(tmp_path / "run").words
    table = words[words.index("Errors on this clip") : words.index("Errors on all held-out clips")]
    assert re.search(r"25 %.*7\.0.*90 %.*8\.0", table, re.DOTALL)


def test_kriging_of_a_picture_is_the_best_linear_prediction():
    random = np.random.default_rng(0)
    clips = [random.standard_normal((40, 4)).cumsum(0) / 10 for _ in range(20)]
    kriging = Kriging.fit(clips)
    original = np.repeat(clips[0][:12, :, None], 8, axis=2).astype(np.float32)  # constant in time
    mask = lambda masked: (original, original)  # noqa: E731
    arrays = pictures.reconstructions(mask, 12, seed=0)
    errors = pictures.kriging_errors(arrays, kriging)
    assert set(errors) == {"0.25", "0.5", "0.75", "0.9"}
    masked = arrays["masked_0.75"].astype(bool)
    assert 0 < errors["0.75"] < predictors.untrained_mse(original, masked)["visible_mean"]


def test_reconstructions_that_do_not_fit_are_refused(tmp_path):
    arrays, facts = reconstructions()
    lacking = {name: array for name, array in arrays.items() if name != "reconstructed_0.9"}
    timeless = {name: text for name, text in facts.items() if name != "frame_s"}
    for said, given in {
        "band_hz": (arrays, {**facts, "band_hz": "[1, 2]"}),
        "frame_s": (arrays, timeless),
        r"reconstructed_0\.9": (lacking, facts),
    }.items():
        with pytest.raises(RequestError, match=said):
            report.reconstruction_figure(*given)
    with pytest.raises(RequestError, match="cannot read reconstructions"):
        report.read_reconstructions(tmp_path / "nowhere.safetensors")
    with pytest.raises(RequestError, match=r"expected \.png, \.svg or \.pdf"):
        report.save_figure(Figure(figsize=(1, 1)), tmp_path / "picture.bmp")


def test_a_model_that_diverged_is_still_drawn():
    arrays, facts = reconstructions()
    arrays["reconstructed_0.9"] = np.full((N, M, W), np.nan, np.float32)
    figure = report.reconstruction_figure(arrays, facts)
    assert "nan dB" in figure.axes[4].get_title(loc="left")


def test_import_needs_neither_torch_nor_matplotlib():
    code = "import sys, patchifier.evaluate.report; print({'torch', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


ROW = {**score("mfcc", "logistic", 0.5), "subset": "", "condition": ""}
PERTURBED = [ROW, {**ROW, "encoder": "other"}, {**ROW, "condition": "noise"}]


@pytest.mark.parametrize(
    "results",
    [
        5, [], {"rows": 5}, {"rows": [1]}, {"rows": [{"value": 1}]}, {"rows": [{**ROW, "metric": []}]},
        {"rows": [ROW], "differences": [{}]}, {"rows": [ROW], "differences": 3},
        {"rows": [ROW], "notes": "x"}, {"rows": [ROW], "notes": [1]},
    ],
)  # fmt: skip
def test_a_result_of_another_form_is_named_and_empty(results, tmp_path):
    problems: list[str] = []
    write_json(tmp_path / "run" / "results.json", results)
    assert read_results(tmp_path / "run" / "results.json", problems) == {}
    assert problems[0].startswith("run/results.json ")


def test_results_of_another_form_do_not_stop_a_report(tmp_path):
    bad = {"rows": [{"value": 1}]}
    write_json(tmp_path / "demo" / "results.json", bad)
    write_json(write_run(tmp_path / "compared", kind="compare") / "results.json", bad)
    write_json(write_run(tmp_path / "tuned", kind="finetune") / "full" / "results.json", bad)
    words = Page(report.report(tmp_path, tmp_path / "out").read_text()).words
    for name in ("demo", "compared", "full"):
        assert f"{name}/results.json has other contents" in words


@pytest.mark.parametrize(
    "results",
    [
        {"rows": PERTURBED},
        {"rows": [{**ROW, "subset": "clean"}]},
        {"rows": [{"encoder": "a"}, {"encoder": "b", "subset": "x"}]},
        {"rows": [ROW], "differences": [{"second": "mfcc", "p_holm": None, "value": "x"}]},
    ],
)
def test_a_comparison_with_missing_values_is_drawn(results, tmp_path):
    write_json(write_run(tmp_path / "run", kind="compare") / "results.json", results)
    assert report.report(tmp_path, tmp_path / "out").exists()

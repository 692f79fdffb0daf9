"""The report: what it draws, what it says about runs that are not whole, and that its page stands alone."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from patchifier import config
from patchifier.config import RequestError
from patchifier.evaluate import report
from patchifier.evaluate.report.figures import curves_figure, health_figure, predictors_in
from patchifier.evaluate.report.folders import read_columns, read_run
from patchifier.train import references

N, M, W = 10, 64, 32
METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")


# --- Synthetic run folders, in the formats the package writes ---


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_run(run: Path, **facts: object) -> Path:
    common = {
        "name": run.name,
        "command": "patchifier demo",
        "started": "2026-01-02T03:04:05",
        "seconds": 61.0,
        "machine": "two cores",
    }
    more = {
        "versions": {"numpy": "2.0"},
        "cache": "cache",
        "clips": {"train": 77, "validation": 5},
        "parameters": 7_300_000,
    }
    write_json(run / "run.json", {**common, **more, "state": "finished", **facts})
    write_json(run / "config.json", config.to_dict(config.Config()))
    return run


def write_metrics(folder: Path, steps: int) -> None:
    rows = [(step, step / 4, 90.0, 1e-4, 0.01 + 0.2 / step, 0.5) for step in range(1, steps + 1)]
    write_csv(
        folder / "metrics.csv", "step,epoch,clips_per_s,learning_rate,loss,gradient_norm", rows
    )


def reconstructions() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    random = np.random.default_rng(0)
    arrays = {"original": random.uniform(-1, 0.3, (N, M, W)).astype(np.float32)}
    for ratio in (0.25, 0.9):
        masked = np.zeros(N, np.uint8)
        masked[: round(ratio * N)] = 1
        arrays |= {
            f"masked_{ratio}": masked,
            f"reconstructed_{ratio}": arrays["original"] + np.float32(0.05),
        }
    hertz = json.dumps(np.geomspace(50, 10_000, M).tolist())
    facts = {
        "clip": "clip-7",
        "title": "Ca$h $ong",
        "frame_s": "0.02322",
        "scale": "0.01",
        "band_hz": hertz,
        "silence": "-1.0",
    }
    return arrays, facts


def write_pretrain(run: Path, *, picture: bool = False, **facts: object) -> Path:
    write_run(run, kind="pretrain", **facts)
    for stage in ("stage-one", "stage-two"):
        write_metrics(run / stage, 60)
    write_csv(
        run / "stage-one" / "validation.csv",
        "step,mse,mean_patch_mse",
        [(30, 0.02, 0.04), (60, 0.01, 0.04)],
    )
    header = "step,masked_mse,mean_patch_mse,visible_mean_mse,interpolation_mse,shrunk_interpolation_mse,kriging_mse,shuffled_mse,equal_positions_mse,"
    header += "within_variance,between_variance,onset_f,embedding_std,effective_rank"
    rows = [
        (
            step,
            0.0225,
            0.04,
            0.035,
            0.03,
            0.029,
            0.028,
            0.024,
            0.023,
            0.02,
            0.4,
            0.1,
            0.5 + step / 1000,
            20 + step / 10,
        )
        for step in (20, 40, 60)
    ]
    write_csv(run / "stage-two" / "validation.csv", header, rows)
    if not picture:
        return run
    arrays, strings = reconstructions()
    save_file(arrays, run / "stage-two" / "reconstructions.safetensors", metadata=strings)
    return run


def score(encoder: str, method: str, value: float, n: int = 24) -> dict[str, object]:
    spread = {"low": value - 0.2, "high": value + 0.1}
    return {
        "encoder": encoder,
        "method": method,
        "metric": "accuracy",
        "value": value,
        "n": n,
        **spread,
    }


def write_finetune(run: Path, encoder: str, value: float) -> list[dict[str, object]]:
    task = {"kind": "one-of", "names": ["calm", "wild"]}
    write_run(run, kind="finetune", encoder=encoder, task=task, metric="accuracy", split="by album")
    rows = [score(encoder, method, value + 0.01 * index) for index, method in enumerate(METHODS)]
    for row, method in zip(rows, METHODS, strict=True):
        write_metrics(run / method, 30)
        write_csv(
            run / method / "validation.csv",
            "step,loss,accuracy",
            [(step, 0.5, value - 0.1 / step) for step in (10, 20, 30)],
        )
        write_json(run / method / "results.json", {"rows": [row]})
    return rows


def write_demo(folder: Path) -> Path:
    write_pretrain(folder / "pretrain", picture=True)
    rows = write_finetune(folder / "tuned", "patchifier", 0.623) + write_finetune(
        folder / "tuned-random", "random", 0.456
    )
    rows += [
        score("majority", "none", 0.25),
        score("mfcc", "logistic", 0.541),
        score("patchifier", "logistic", 0.777, n=96),
    ]
    real = {"first": "ours", "second": "random", "value": 0.17, "low": 0.02, "high": 0.3, "n": 24}
    unclear = {"first": "ours", "second": "mfcc", "value": 0.08, "low": -0.03, "high": 0.2, "n": 24}
    worse = {
        "first": "majority",
        "second": "ours",
        "value": -0.3,
        "low": -0.5,
        "high": -0.1,
        "n": 24,
    }
    touching = {
        "first": "ours",
        "second": "mel-stats",
        "value": 0.1,
        "low": 0.0,
        "high": 0.2,
        "n": 24,
    }
    stage_two = {
        "masked_mse": 0.0225,
        "mean_patch_mse": 0.04,
        "visible_mean_mse": 0.035,
        "interpolation_mse": 0.03,
    }
    results = {
        "seconds": 90,
        "parameters": 7_300_000,
        "rows": rows,
        "stage_two": stage_two,
        "notes": ["Small & quick."],
    }
    write_json(
        folder / "results.json", {**results, "differences": [real, unclear, worse, touching]}
    )
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch, the text, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [
            values[name] for name in ("src", "href", "srcset", "data", "action") if name in values
        ]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "img", "br", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("report")
    page = report.report([write_demo(folder / "demo")], folder / "out")
    return page, page.read_text(encoding="utf-8")


# --- The page and its files ---


def test_page_stands_alone(demo: tuple[Path, str]) -> None:
    path, text = demo
    page = Page(text)
    assert path.name == "index.html"
    assert not page.open
    assert len(page.images) == 4
    assert all(link.startswith("data:image/") for link in page.links)
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert "http://" not in text
    assert "https://" not in text


def test_reconstruction_keeps_the_page_small(demo: tuple[Path, str]) -> None:
    embedded = Page(demo[1]).images[0]["src"]
    beside = demo[0].parent / "reconstruction.png"
    assert len(embedded) < 0.6 * beside.stat().st_size  # in 256 colours, base64 included
    colours, few = (
        matplotlib.image.imread(picture)[..., :3]
        for picture in (beside, io.BytesIO(base64.b64decode(embedded.split(",")[1])))
    )
    assert colours.shape == few.shape
    assert np.mean(np.abs(colours - few)) < 0.03
    assert np.percentile(np.abs(colours - few)[-100:], 99.5) < 0.1  # both colour scales are whole


@pytest.mark.parametrize("name", ["reconstruction", "figure-2", "losses", "health"])
def test_figures_are_drawn(demo: tuple[Path, str], name: str) -> None:
    picture = matplotlib.image.imread(demo[0].parent / f"{name}.png")
    height, width = picture.shape[:2]
    assert width == 1500
    assert height > 350
    assert 0.002 < np.mean(picture[..., :3].min(axis=2) < 0.5) < 0.9  # ink, and paper
    assert ElementTree.parse(demo[0].parent / f"{name}.svg").getroot().tag.endswith("svg")


def test_nothing_half_written_is_left(demo: tuple[Path, str]) -> None:
    figures = {
        f"{name}.{kind}"
        for name in ("reconstruction", "figure-2", "losses", "health")
        for kind in ("png", "svg")
    }
    assert {path.name for path in demo[0].parent.iterdir()} == {
        "index.html",
        "table.csv",
        "table.md",
        *figures,
    }


def test_page_states_the_numbers(demo: tuple[Path, str]) -> None:
    words = Page(demo[1]).words
    for number in (
        "62.3 %",
        "42.3 to 72.3",
        "45.6 %",
        "54.1 %",
        "25.0 %",
        "15.0 dB",
        "20.0 dB",
        "7.3 million",
        "77 clips",
        "7,300,000",
    ):
        assert number in words, number
    for text in (
        "patchifier demo",
        "two cores",
        "numpy 2.0",
        "61 s",
        "Small & quick.",
        '"mask_ratio": 0.75',
        "clip-7",
    ):
        assert text in words, text
    assert "What is missing" not in words


def test_published_figures_stand_apart_with_their_errors(demo: tuple[Path, str]) -> None:
    words = Page(demo[1]).words
    for text in (
        "never ranked with ours",
        "72.3",
        "48.6",
        "four-task average",
        "66.9",
        "56.8",
        "does not state the split",
    ):
        assert text in words, text
    assert "72.3" not in (demo[0].parent / "table.md").read_text().split("to 72.3")[0]


def test_a_score_in_demo_and_run_is_told_once(demo: tuple[Path, str]) -> None:
    with (demo[0].parent / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert {row["source"] for row in rows} == {"demo"}
    assert [row["encoder"] for row in rows if row["n"] == "24"] == ["patchifier"] * 4 + [
        "random"
    ] * 4 + ["mfcc", "majority"]
    assert [row["method"] for row in rows if row["encoder"] == "random"] == list(METHODS)


def test_rows_of_other_clips_do_not_borrow_a_split(demo: tuple[Path, str]) -> None:
    with (demo[0].parent / "table.csv").open() as file:
        tests = {row["n"]: row["test"] for row in csv.DictReader(file)}
    assert tests == {"24": "one-of: calm, wild; by album", "96": "one-of: calm, wild"}


def test_a_finished_run_of_one_method_misses_nothing(tmp_path: Path) -> None:
    write_finetune(tmp_path / "run", "patchifier", 0.5)
    for method in METHODS[1:]:
        shutil.rmtree(tmp_path / "run" / method)
    assert "What is missing" not in report.report(tmp_path / "run", tmp_path / "out").read_text()


def test_different_clips_are_set_apart(demo: tuple[Path, str], tmp_path: Path) -> None:
    sentence = "tested on different clips and must not be ranked"
    for text in (demo[1], (demo[0].parent / "table.md").read_text()):
        many, few = text.index("77.7"), text.index("54.1")
        assert text.count(sentence) == 1
        assert min(many, few) < text.index(sentence) < max(many, few)
        assert "With 24 test clips the 95 % interval is about ± 15 points" in text
    write_json(
        tmp_path / "run" / "results.json",
        {"rows": [score("patchifier", method, 0.5) for method in METHODS]},
    )
    assert sentence not in report.report(tmp_path / "run", tmp_path / "out").read_text()


def test_beats_only_when_the_interval_leaves_out_zero(demo: tuple[Path, str]) -> None:
    words = Page(demo[1]).words
    assert "ours beats random" in words
    assert "+17.0 points" in words
    assert "+2.0 to +30.0" in words
    assert "ours cannot be told apart from mfcc" in words
    assert "−3.0 to +20.0" in words
    assert "majority is beaten by ours" in words
    assert (
        "ours cannot be told apart from mel-stats" in words
    )  # an interval that touches 0 does not leave it out
    assert len(re.findall(r"\bbeats\b", words)) == 1


def test_report_is_reproducible(tmp_path: Path) -> None:
    run = write_pretrain(tmp_path / "run")
    for stage in ("stage-one", "stage-two"):
        (run / stage / "metrics.csv").unlink()
    first, second = (report.report(run, tmp_path / out).read_bytes() for out in ("first", "second"))
    assert first == second


# --- Runs that are not whole ---


def test_unfinished_runs_are_drawn_and_named(tmp_path: Path) -> None:
    going = write_run(tmp_path / "runs" / "going", kind="pretrain", state="running")
    write_metrics(going / "stage-one", 3)
    with (going / "stage-one" / "metrics.csv").open("a") as file:
        file.write("4,1.0,90.0,1e-4,0.0")  # a line still being written
    write_run(tmp_path / "runs" / "empty", kind="pretrain", state="interrupted")
    tuned = write_run(
        tmp_path / "runs" / "tuned",
        kind="finetune",
        encoder="patchifier",
        metric="accuracy",
        state="running",
    )
    write_csv(tuned / "full" / "validation.csv", "step,loss,accuracy", [(10, 0.7, 0.4)])
    page = report.report([tmp_path / "runs"], tmp_path / "out")
    words = Page(page.read_text()).words
    notice = words[words.index("What is missing") : words.index("Published figures")]
    assert "going: it is still running, or was killed" in notice
    assert "stage-two: no step yet" in notice
    assert "empty: it was interrupted" in notice
    assert "tuned: " in notice
    assert "full: no test score yet" in notice
    assert (tmp_path / "out" / "losses-going.png").exists()
    assert (tmp_path / "out" / "figure-2.png").exists()
    assert len(read_columns(going / "stage-one" / "metrics.csv")["step"]) == 3


def test_damaged_files_are_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    run = write_pretrain(tmp_path / "runs" / "broken")
    (run / "run.json").write_text('{"kind": "pre')
    (run / "stage-two" / "reconstructions.safetensors").write_bytes(b"not tensors")
    write_csv(
        run / "stage-two" / "validation.csv",
        "step,masked_mse,embedding_std",
        [(10, "nan", ""), ("x", 1, 1), (20, 0.01, 0.4)],
    )
    words = Page(report.report(tmp_path / "runs", tmp_path / "out").read_text()).words
    assert "broken/run.json cannot be read" in words
    assert "cannot read reconstructions" in words
    assert (tmp_path / "out" / "losses.png").exists()
    assert (tmp_path / "out" / "health.png").exists()


def test_runs_of_one_name_keep_their_figures_apart(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        write_metrics(write_run(tmp_path / parent / "run", kind="pretrain") / "stage-one", 9)
    page = report.report(
        [tmp_path / "first", tmp_path / "second" / "run", tmp_path / "second"], tmp_path / "out"
    )
    words = Page(page.read_text()).words
    assert "run (first/run)" in words
    assert "run (second/run)" in words
    assert len(list((tmp_path / "out").glob("losses-*.png"))) == 2
    assert len(Page(page.read_text()).images) == 2


def test_scores_that_are_not_accuracies_and_go_below_zero(tmp_path: Path) -> None:
    row = {
        "encoder": "patchifier",
        "method": "full",
        "metric": "r2",
        "value": -0.2,
        "low": None,
        "high": 0.1,
        "n": 9,
    }
    write_run(
        tmp_path / "run",
        kind="finetune",
        encoder="patchifier",
        metric="r2",
        task={"kind": "numbers", "names": ["valence"]},
    )
    write_json(tmp_path / "run" / "full" / "results.json", {"rows": [row]})
    words = Page(report.report(tmp_path / "run", tmp_path / "out").read_text()).words
    assert "−0.200" in words
    assert "– to 0.100" in words
    assert "numbers: valence" in words
    assert "no validation yet" in words


def test_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"no run folder under .*nowhere.*expected a folder with run\.json"
    ):
        report.report([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="it is a file"):
        report.report([write_run(tmp_path / "run", kind="pretrain")], tmp_path / "file")


def test_a_path_without_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    page = report.report(
        [write_run(tmp_path / "run", kind="pretrain"), tmp_path / "nothing"], tmp_path / "out"
    )
    assert f"Nothing to report on under {tmp_path / 'nothing'}" in Page(page.read_text()).words


def test_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    run = write_run(
        tmp_path / "demo" / "run",
        kind="pretrain",
        name=evil,
        command=evil,
        machine=evil,
        state=evil,
    )
    write_metrics(run / "stage-one", 9)
    rows = [{**score(evil, evil, 0.5), "metric": evil, "n": evil}]
    write_json(
        tmp_path / "demo" / "results.json",
        {"rows": rows, "notes": [evil], "differences": [{"first": evil, "second": evil}]},
    )
    page = report.report(tmp_path / "demo", tmp_path / "out")
    assert "script" not in Page(page.read_text()).tags
    assert evil in Page(page.read_text()).words
    assert "<script" not in (tmp_path / "out" / "table.md").read_text()


# --- Figures by themselves ---


def test_every_predictor_lies_inside_the_axes(tmp_path: Path) -> None:
    run = write_pretrain(tmp_path / "run")
    header = "step,masked_mse,mean_patch_mse,visible_mean_mse,interpolation_mse"
    write_csv(run / "stage-two" / "validation.csv", header, [(60, 0.0225, 0.04, 0.001, 0.0005)])
    figure = curves_figure(read_run(run, tmp_path, []))
    assert figure is not None
    assert figure.axes[1].get_ylim()[0] < 100 * 0.0005**0.5


def test_health_of_a_run_before_order_was_measured_has_two_panels(tmp_path: Path) -> None:
    run = write_pretrain(tmp_path / "run")
    titles = [
        axes.get_title(loc="left") for axes in health_figure(read_run(run, tmp_path, [])).axes
    ]
    assert [title for title in titles if title] == [
        "Use of order",
        "Variance drawn",
        "Onsets drawn",
        "Spread of the embeddings",
        "Dimensions in use",
    ]
    write_csv(
        run / "stage-two" / "validation.csv",
        "step,masked_mse,embedding_std,effective_rank",
        [(60, 0.0225, 0.5, 20)],
    )
    titles = [
        axes.get_title(loc="left") for axes in health_figure(read_run(run, tmp_path, [])).axes
    ]
    assert titles == ["Spread of the embeddings", "Dimensions in use"]
    write_csv(run / "stage-two" / "validation.csv", "step,masked_mse", [(60, 0.0225)])
    assert health_figure(read_run(run, tmp_path, [])) is None


def test_the_interpolation_of_older_runs_was_the_shrunk_one() -> None:
    new, old = (
        predictors_in(["interpolation_mse", "shrunk_interpolation_mse"]),
        predictors_in(["step", "visible_mean_mse", "interpolation_mse"]),
    )
    assert new["interpolation_mse"][1] != new["shrunk_interpolation_mse"][1]
    assert list(old) == ["visible_mean_mse", "interpolation_mse"]
    assert old["interpolation_mse"] == new["shrunk_interpolation_mse"]


def test_reconstructions_are_read_and_drawn(tmp_path: Path) -> None:
    run = write_pretrain(tmp_path / "run", picture=True)
    arrays, facts = report.read_reconstructions(run / "stage-two" / "reconstructions.safetensors")
    figure = report.reconstruction_figure(arrays, facts)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "Original: Ca$h $ong"
    mse = f"{references.untrained_mse(arrays['original'], arrays['masked_0.9'].astype(bool))['interpolation']:.4f}"
    assert f"interpolation {mse}" in titles[4].splitlines()[-1]
    assert (
        "90 % masked: 9 of 10 patches, filled in with an error of 5.0 dB RMSE (MSE 0.0025)"
        in titles[4]
    )
    assert {axes.get_xlabel().strip() for axes in figure.axes} >= {
        "Time (s)",
        "Level (dB re full scale)",
        "Absolute error (dB)",
    }
    given, filled = (figure.axes[index].images[0].get_array() for index in (0, 2))
    assert filled.shape == (M, N * W)
    hidden = slice(0, 2 * W)  # the first two of ten patches are masked at 25 %
    assert np.allclose(filled[:, hidden] - given[:, hidden], 5.0, atol=1e-3)
    assert np.array_equal(filled[:, 2 * W :], given[:, 2 * W :])
    report.save_figure(Figure(figsize=(1, 1)), tmp_path / "picture.pdf")
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")


def test_reconstructions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    arrays, facts = reconstructions()
    with pytest.raises(RequestError, match="band_hz"):
        report.reconstruction_figure(arrays, {**facts, "band_hz": "[1, 2]"})
    with pytest.raises(RequestError, match="frame_s"):
        report.reconstruction_figure(
            arrays, {name: text for name, text in facts.items() if name != "frame_s"}
        )
    with pytest.raises(RequestError, match=r"reconstructed_0\.9"):
        report.reconstruction_figure(
            {name: array for name, array in arrays.items() if name != "reconstructed_0.9"}, facts
        )
    with pytest.raises(RequestError, match="cannot read reconstructions"):
        report.read_reconstructions(tmp_path / "nowhere.safetensors")
    with pytest.raises(RequestError, match=r"expected \.png, \.svg or \.pdf"):
        report.save_figure(Figure(figsize=(1, 1)), tmp_path / "picture.bmp")


def test_a_model_that_diverged_is_still_drawn() -> None:
    arrays, facts = reconstructions()
    figure = report.reconstruction_figure(
        {**arrays, "reconstructed_0.9": np.full((N, M, W), np.nan, np.float32)}, facts
    )
    assert "nan dB" in figure.axes[4].get_title(loc="left")


def test_import_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, patchifier.evaluate.report; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_of_a_run_of_the_first_edition_are_read_by_the_names_of_today(
    tmp_path: Path,
) -> None:
    run, problems = write_run(tmp_path / "run", kind="pretrain"), []
    write_json(run / "config.json", config.stored_form(config.Config()))
    found = read_run(run, tmp_path, problems)
    assert (found.config, problems) == (config.to_dict(config.Config()), [])

"""The notebooks: their sources are valid and use documented names; executed, their numbers hold."""

import ast
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(source.stem for source in FOLDER.glob("*.py"))
NEEDED = {"IPython", "matplotlib", "numpy", "patchifier", "sklearn", "soundfile"}


def tool():
    """tools/notebooks.py, whose import takes seconds, of which other tests need nothing."""
    return importlib.import_module("tools.notebooks")


def trees(name):
    """Code of a notebook's cells, parsed."""
    notebook = tool().read(FOLDER / f"{name}.py")
    return [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]


def imported(name):
    """Imported modules and names: (module, name or None) for each."""
    for tree in trees(name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module, alias.name) for alias in node.names)


def test_there_are_four_notebooks():
    assert [source.stem for source in tool().sources()] == NAMES
    assert NAMES == [
        "explore_my_library",
        "probe_vectors_on_my_labels",
        "reproduce_figure_2_in_small",
        "what_the_model_sees",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_in_the_percent_form_and_nothing_is_lost_between_its_cells(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    notebook = tool().read(FOLDER / f"{name}.py")
    import jupytext
    import nbformat
    import yaml

    # jupytext registers this with a parent class, too late where jsonargparse was imported before
    yaml.SafeDumper.add_representer(nbformat.NotebookNode, yaml.SafeDumper.represent_dict)
    written = jupytext.writes(notebook, fmt="py:percent")
    assert written.split("# ---\n")[2] == text.split("# ---\n")[2]  # the head names a version
    assert notebook.metadata.kernelspec.name == "python3"
    compile(text, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_has_the_one_title_with_minutes_and_needs(name):
    first, *others = tool().read(FOLDER / f"{name}.py").cells
    assert first.cell_type == "markdown"
    assert len(re.findall(r"^# ", first.source, re.MULTILINE)) == 1
    for words in ("?", "minute", "offline", "pip install"):
        assert words in first.source, words
    for cell in others:
        if cell.cell_type == "markdown":
            assert not re.search(r"^# ", cell.source, re.MULTILINE), cell.source[:60]


@pytest.mark.parametrize("name", NAMES)
def test_imports_are_documented_public_names_of_packages_of_the_extras(name):
    found = list(imported(name))
    assert any(module.startswith("patchifier") for module, _ in found)
    for module, attribute in found:
        top = module.split(".")[0]
        assert top in NEEDED or top in sys.stdlib_module_names, module
        if top != "patchifier" or attribute is None:
            continue
        assert not attribute.startswith("_"), attribute
        value = getattr(importlib.import_module(module), attribute, None)
        if value is None:
            value = importlib.import_module(f"{module}.{attribute}")
        constant = attribute.isupper() or not (inspect.isroutine(value) or inspect.isclass(value))
        assert constant or inspect.getdoc(value), f"{module}.{attribute}"


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_name_no_private_attribute(name):
    for tree in trees(name):
        last = max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(tree)), default=0)
        assert last <= 32, f"a cell of {last} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                assert node.attr == "_repr_html_", node.attr  # the protocol of IPython's display


# --- executed ---

LAST_CELL = """
# %%
import json

with open("values.json", "w") as file:
    json.dump({values}, file, default=lambda value: np.asarray(value).tolist())
"""


def run(name, folder, values):
    """Execute a notebook; return its number of pictures, and values of expressions at its end."""
    source = folder / f"{name}.py"
    text = (FOLDER / source.name).read_text(encoding="utf-8")
    wanted = ", ".join(f"{key!r}: {value}" for key, value in values.items())
    source.write_text(text + LAST_CELL.format(values=f"{{{wanted}}}"), encoding="utf-8")
    notebook = tool().execute(source, folder)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return pictures, json.loads((folder / "values.json").read_text())


@pytest.mark.slow
def test_a_library_is_explored(tmp_path, child_environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", child_environment["PYTHONPATH"])
    pictures, found = run(
        "explore_my_library",
        tmp_path,
        {
            "files": "done.files",
            "own": "[song.path in [near.path for near in neighbours]]",
            "scores": "[near.score for near in neighbours]",
            "stretch": "[best.first_start_s, best.second_start_s, best.score]",
            "path": "[step.path for step in path]",
            "ends": "[song.path, farthest.path]",
            "same": "np.mean(same)",
            "chance": "np.mean(shares)",
            "copies": "[[pair.kind, pair.offset_s, pair.first.path, pair.second.path] for pair in found]",
            "places": "places",
        },
    )
    assert pictures == 2
    assert found["files"] == 112
    assert found["own"] == [False]
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert 0 <= found["stretch"][0] <= 15
    assert -1 <= found["stretch"][2] <= 1
    assert [found["path"][0], found["path"][-1]] == found["ends"]
    assert len(set(found["path"])) == 6
    lines = (tmp_path / "path.m3u8").read_text(encoding="utf-8").splitlines()
    assert [tmp_path / line for line in lines[2::2]] == [tmp_path / path for path in found["path"]]
    assert found["same"] > found["chance"]
    ((kind, offset_s, *pair),) = found["copies"]
    assert kind == "same recording edited or re-encoded"
    assert abs(offset_s) == pytest.approx(2, abs=0.1)
    assert {Path(path).name for path in pair} == {"copy.mp3", Path(found["ends"][0]).name}
    assert np.shape(found["places"]) == (112, 2)


@pytest.mark.slow
def test_vectors_are_probed(tmp_path, child_environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", child_environment["PYTHONPATH"])
    pictures, found = run(
        "probe_vectors_on_my_labels",
        tmp_path,
        {
            "rows": "results['rows']",
            "differences": "results['differences']",
            "right": "right.mean()",
            "by_group": "by_group",
            "learnt": "learnt['patchifier-base'][:, 0]",
            "names": "head.task.names",
            "labels": "sorted(set(labels))",
            "probabilities": "head.predict(files[0])",
        },
    )
    assert pictures == 3
    by_name = {row["encoder"]: row for row in found["rows"]}
    assert list(by_name) == ["majority", "patchifier-base", "random weights", "mfcc"]
    for row in found["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n"] == 112
    assert by_name["patchifier-base"]["value"] > by_name["majority"]["high"]
    for row in found["differences"]:
        assert row["low"] <= row["value"] <= row["high"]
        parts = by_name[row["first"]]["value"] - by_name[row["second"]]["value"]
        assert row["value"] == pytest.approx(parts)
    assert found["by_group"][0] < found["right"] < found["by_group"][1]
    assert found["learnt"][0] < found["learnt"][-1]
    assert found["names"] == found["labels"]
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_what_the_model_sees_is_compared_with_references(tmp_path, child_environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", child_environment["PYTHONPATH"])
    pictures, found = run(
        "what_the_model_sees",
        tmp_path,
        {
            "errors": "errors",
            "own": "drawn.mse",
            "first": "[errors['model'][0], errors['visible_mean'][0]]",
            "differences": "{n: [s.low, s.value, s.high] for n, s in differences.items()}",
            "sums": "weights.sum(-1)",
            "moving": "moving",
        },
    )
    assert pictures == 4
    names = [
        "model",
        "visible_mean",
        "interpolation",
        "shrunk_interpolation",
        "kriging",
        "shuffled",
    ]
    assert list(found["errors"]) == names
    for errors in found["errors"].values():
        assert len(errors) == 112
        assert np.isfinite(errors).all()
        assert np.min(errors) > 0
    assert found["first"] == pytest.approx(
        [found["own"]["model"], found["own"]["visible_mean"]], rel=1e-4
    )
    for low, value, high in found["differences"].values():
        assert low <= value <= high
    mean = np.mean(found["errors"]["model"]) - np.mean(found["errors"]["kriging"])
    assert found["differences"]["kriging"][1] == pytest.approx(mean)
    assert np.shape(found["sums"]) == (8, 4, 26)
    np.testing.assert_allclose(found["sums"], 1, rtol=1e-4)
    assert 0 < found["moving"] < 1


@pytest.mark.slow
def test_figure_2_has_four_curves_with_intervals(tmp_path, child_environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", child_environment["PYTHONPATH"])
    pictures, found = run(
        "reproduce_figure_2_in_small",
        tmp_path,
        {"rows": "rows", "curves": "curves", "clips": "len(clips)"},
    )
    assert pictures == 2
    assert found["clips"] == 112
    methods = ["linear-probe", "freeze-extractor", "freeze-bottleneck", "full"]
    assert [row["method"] for row in found["rows"][2:]] == methods
    for row in found["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n"] == 112
    assert list(found["curves"]) == methods
    starts = set()
    for steps, means, bounds in found["curves"].values():
        assert steps == [0, 8, 16, 24, 32, 40]
        low, high = np.transpose(bounds)
        assert (low < means).all()
        assert (means < high).all()
        starts.add(round(means[0], 6))
        assert max(means) > means[0]
    assert len(starts) == 1  # before the first step all methods are the same model

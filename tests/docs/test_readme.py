"""What README shows works: its commands parse, its Python runs, the files it names are there."""

import operator
import re
import runpy
import shlex
import typing

import numpy as np
import pytest

import patchifier
from patchifier import cli, tasks
from patchifier.cli.command import parse
from patchifier.config import Config
from patchifier.datasets import Clip, splits
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [
    README,
    CONTRIBUTING,
    *(
        page.read_text(encoding="utf-8")
        for page in DOCS.rglob("*.md")
        if not {"experiments", "made"} & set(page.parts)
    ),
]
COMMAND = re.compile(r"^(?:\$|   ) (?:[A-Z_]+=\S+ )*patchifier (.+?)(?:\s+[#|].*)?$", re.MULTILINE)
COMMANDS = [command for page in PAGES for command in COMMAND.findall(page)]


def test_the_pages_show_commands():
    assert len(COMMAND.findall(README)) >= 5
    assert len(COMMANDS) >= 70


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_pages_parse(command):
    name, *words = shlex.split(command)
    parse(cli.COMMANDS[name], words)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("pretrain")])
def test_trainings_of_the_pages_have_clips_to_validate_on_in_a_folder_of_music(
    command, monkeypatch
):
    monkeypatch.chdir(ROOT)
    _, *words = shlex.split(command)
    flags, _ = parse(cli.COMMANDS["pretrain"], words)
    config = flags["changes"].apply(Config()).pretrain
    clips = [Clip(f"{number}", f"{number}.ogg") for number in range(200)]
    parts = [np.arange(200)[part :: config.n_cache_parts] for part in range(config.n_cache_parts)]
    assert len(splits.pretraining_splits(clips, config, parts=parts, where="cache").valid)


def test_modules_that_the_pages_name_are_attributes():
    names = {name for page in PAGES for name in re.findall(r"`patchifier\.([a-z_.]+)`", page)}
    assert len(names) >= 5
    operator.attrgetter(*names)(patchifier)  # tests/test_architecture.py: without an import


def test_the_first_thing_readme_shows_needs_no_training():
    first = README.split("```python\n")[1].split("```")[0]
    assert "patchifier.load()" in first
    assert (
        README.index("patchifier.load()")
        < README.index("make demo")
        < README.index("patchifier pretrain")
    )


def test_recipes_that_readme_names_exist():
    for name in re.findall(r"recipes/[\w-]+\.json", README):
        assert (ROOT / name).is_file()


def test_make_targets_that_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_fits_two_screens_and_names_what_it_needs():
    assert len(README.splitlines()) <= 100
    for needed in ("arXiv:2210.15988", "whl/cpu", "LICENSE", "weights/patchifier-base/README.md"):
        assert needed in README
    assert README.count("![") == 1


def test_links_of_readme_and_design_lead_somewhere():
    for page in ("README.md", "DESIGN.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert link.startswith("http") or (ROOT / link).exists(), f"{page}: {link}"


def test_every_experiment_has_its_five_parts_and_a_row_of_the_summary():
    folder = ROOT / "docs" / "experiments"
    summary = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    rows = re.findall(r"^\| (\d+) \| .+ \| .*\d.* \| \[.+\]\((.+)\) \|$", summary, re.MULTILINE)
    assert rows == [(str(number), path.name) for number, path in enumerate(pages, 1)]
    for path in pages:
        headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Question", "Command", "Result", "Conclusion", "Machine"], path.name


def test_files_and_names_of_contributing_exist():
    package = ROOT / "src" / "patchifier"
    tree = re.findall(r"^  (\S.*?)(?:   .*)?$", CONTRIBUTING, re.MULTILINE)
    names = [name for line in tree for name in line.split() if name.endswith((".py", "/"))]
    names += re.findall(r"`([\w/]+(?:\.py|/))`", CONTRIBUTING)
    assert len(names) >= 25
    for name in names:
        assert (ROOT / name).exists() or (package / name).exists(), name
    for name, path in re.findall(r"`(\w+)` of\s`([\w/.]+\.py)`", CONTRIBUTING):
        file = ROOT / path if path.startswith("tests/") else package / path
        assert re.search(rf"^{name}\b", file.read_text(encoding="utf-8"), re.MULTILINE), name


def test_commands_and_targets_that_contributing_names_exist():
    for name in re.findall(r"`patchifier (\w+)", CONTRIBUTING):
        assert name in cli.COMMANDS
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", CONTRIBUTING)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_glossary_has_every_kind_of_task_as_files_store_it():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    stored = re.findall(r"^\| [a-z-]+ \| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(stored) == sorted(typing.get_args(tasks.Kind))


def test_table_of_speeds_is_what_the_committed_results_say():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert tables["with_table"](page) == page, (
        "run python benchmarks/tables.py, and type no number by hand"
    )


def test_every_benchmark_of_make_bench_has_its_result_and_stands_in_the_table():
    recipe = re.search(
        r"^bench:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    scripts = re.findall(r"benchmarks/(\w+)\.py", recipe)
    assert scripts[-1] == "tables"
    for script in scripts[:-1]:
        assert (ROOT / "benchmarks" / "results" / f"{script}.json").is_file(), script
        assert f"| `python benchmarks/{script}.py` |" in page, script

"""The examples in docstrings run, in a folder with a little music, its table and a cache."""

import dataclasses
import doctest
import importlib
import inspect
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import patchifier
from patchifier import cache, datasets, jobs
from patchifier.integrations import hf
from patchifier.library import embed_library
from tests import reference

ROOT = Path(patchifier.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PARSER = doctest.DocTestParser()
SLOW = "patchifier.integrations.onnx.export"  # a quarter of a minute
# They have examples, which are not run. At most eight, SLOW among them.
EXCUSED = {
    SLOW: "takes long: a slow test runs its example",
    "patchifier.hub.from_hub": "downloads: tests/integrations/test_hub.py",
    "patchifier.integrations.ray.embed_on_ray": "starts Ray: tests/integrations/test_ray.py",
    "patchifier.app.server.run": "serves until it is interrupted: tests/app",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = [name_of(path) for path in FILES]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    demo = datasets.load("demo")
    (home / "music").mkdir()
    for name, clip in zip(("one", "two", "three"), demo.clips[::40], strict=True):
        shutil.copy(clip.path, home / "music" / f"{name}.ogg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        few = dataclasses.replace(demo, clips=demo.clips[::8])
        cache.prepare(few, home / "demo-cache", workers=1)
        embed_library(home / "music", home / "music.parquet", workers=1)
    return home


def examples_of(name: str) -> list[doctest.DocTest]:
    """Examples of a module, each with the names that the module has."""
    module = importlib.import_module(name)
    given = vars(module) | {"patchifier": patchifier}
    found = doctest.DocTestFinder(exclude_empty=True).find(module, globs=given)
    return [test for test in found if test.examples]


def check(test: doctest.DocTest) -> None:
    """Run the examples of a name; a failed one is shown."""
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    monkeypatch.chdir(home)
    for test in examples_of(name):
        if test.name not in EXCUSED:
            check(test)


@pytest.mark.parametrize("name", hf.CLASSES)
def test_examples_of_classes_that_are_made_at_first_use_run(name: str) -> None:
    text = getattr(hf, name).__doc__
    test = PARSER.get_doctest(text, {"patchifier": patchifier}, name, None, 0)
    assert test.examples
    check(test)


@pytest.mark.slow
def test_the_example_that_takes_long_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (test,) = (test for test in examples_of(SLOW.rpartition(".")[0]) if test.name == SLOW)
    check(test)


def is_exception(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


def test_every_name_of_the_reference_has_an_example_that_runs() -> None:
    found = reference.names()
    assert len(found) >= 90
    run = {test.name for name in MODULES for test in examples_of(name)}
    run |= {f"{getattr(hf, name).__module__}.{name}" for name in hf.CLASSES}
    without = {name.place for name in found if not is_exception(name.value)} - run
    assert not without, "each needs a section Examples in its docstring"


def test_few_names_are_excused_and_their_examples_are_there() -> None:
    assert len(EXCUSED) <= 8
    assert EXCUSED.keys() <= {name.place for name in reference.names()}
    for name in EXCUSED:
        (test,) = (one for one in examples_of(name.rpartition(".")[0]) if one.name == name)
        for example in test.examples:
            compile(example.source, name, "single")

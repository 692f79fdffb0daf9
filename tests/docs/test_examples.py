"""The examples in docstrings run, in a folder with a little music, its table and a cache."""

import dataclasses
import doctest
import importlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import patchifier
from patchifier import cache, datasets, jobs
from patchifier.library import embed_library

ROOT = Path(patchifier.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


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


@pytest.mark.parametrize("name", map(name_of, FILES))
def test_examples_of_a_module_run(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    monkeypatch.chdir(home)
    module = importlib.import_module(name)
    given = vars(module) | {"patchifier": patchifier}
    result = doctest.testmod(module, globs=given, optionflags=FLAGS)
    assert result.attempted
    assert not result.failed


def test_the_functions_that_people_call_have_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test.name
        for path in FILES
        for test in finder.find(importlib.import_module(name_of(path)))
        if test.examples
    ]
    assert len(found) >= 40

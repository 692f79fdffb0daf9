"""The site: every page is in it, links and anchors lead somewhere, snippets run, nothing is remote."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from tools.figures import architecture, commands, intervals
from tools.figures.__main__ import FIGURES

from patchifier import cli, datasets, jobs
from patchifier.library import embed_library
from tests import ROOT, reference

DOCS = ROOT / "docs"
FILES = sorted(file for file in DOCS.rglob("*.md") if "made" not in file.parts)
TOP = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md", "CHANGELOG.md", "SECURITY.md")
]
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])+\]\(([^()\s]+)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^()\s]+)\)")
CONF = runpy.run_path(str(DOCS / "conf.py"))


def name_of(file):
    return file.relative_to(ROOT).as_posix()


def text_of(file):
    return file.read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading):
    """Anchor of a heading, as GitHub and MyST make it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(file):
    return {
        slug(heading) for heading in re.findall(r"^#+ (.+)$", without_code(text_of(file)), re.M)
    }


# --- links ---


@pytest.mark.parametrize("name", map(name_of, [*FILES, *TOP]))
def test_links_lead_to_a_file_and_a_heading_of_it(name):
    file = ROOT / name
    for link in LINK.findall(without_code(text_of(file))):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}"


@pytest.mark.parametrize("name", map(name_of, [*FILES, *TOP]))
def test_addresses_elsewhere_are_well_formed(name):
    for link in re.findall(r"https?://[^\s)>`\"']+", without_code(text_of(ROOT / name))):
        parts = urllib.parse.urlsplit(link.rstrip(".,;:*/"))
        local = parts.hostname in ("localhost", "127.0.0.1")
        assert parts.scheme == "https" or local, f"{name}: {link}"
        assert local or re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.hostname or ""), link


def test_links_to_files_outside_of_the_site_are_named_and_pages_are_linked():
    page = DOCS / "guides" / "x.md"
    text = "[code](../../recipes/demo.json), [design](../../DESIGN.md#a), [search](../search.md)"
    made = CONF["site_links"](
        f"{text}, [out](https://a.org/b)\n```\n[kept](../../x.py)\n```", page, page
    )
    assert made.startswith(
        "code (`recipes/demo.json`), [design](../project/design.md#a), [search](neighbours.md), "
        "[out](https://a.org/b)"
    )
    assert "[kept](../../x.py)" in made


# --- the site ---


def test_every_page_is_in_a_table_of_contents():
    listed = {"index", "search", "experiments/README"}
    for file in FILES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", text_of(file), re.DOTALL):
            for line in block.splitlines():
                if line and not line.startswith(":") and "*" not in line:
                    found = (file.parent / f"{line}.md").resolve()
                    assert found.exists(), f"{name_of(file)}: {line}"
                    listed.add(found.relative_to(DOCS).with_suffix("").as_posix())
    pages = {file.relative_to(DOCS).with_suffix("").as_posix() for file in FILES}
    missing = {page for page in pages - listed if not re.match(r"experiments/\d", page)}
    assert not missing


def test_pages_that_stand_for_a_file_elsewhere_link_it():
    for name, path in CONF["ELSEWHERE"].items():
        (link,) = LINK.findall(text_of(DOCS / f"{name}.md"))
        assert ((DOCS / name).parent / link).resolve() == ROOT / path


def test_every_made_figure_has_a_script_and_a_page():
    text = "".join(map(text_of, FILES))
    used = set(re.findall(r"made/(\w+)\.(?:svg|png|md)", text))
    assert used == set(FIGURES)


def test_pictures_that_pages_show_are_stored_or_made():
    shown = [(file, link) for file in FILES for link in PICTURE.findall(text_of(file))]
    assert len(shown) >= 10
    for file, link in shown:
        target = (file.parent / link).resolve()
        assert target.exists() or target.parent == DOCS / "made", f"{name_of(file)}: {link}"


def test_every_stored_picture_has_a_page_and_a_command():
    text = "".join(map(text_of, FILES))
    commands_of = {"app": "make screenshots", "step": "profile_step.py", "soak": "make soak"}
    for picture in (DOCS / "figures").rglob("*.*"):
        folder = picture.relative_to(DOCS / "figures").parts[0].partition(".")[0]
        assert commands_of[folder] in text, picture
        assert folder == "app" or f"figures/{picture.name})" in text


def test_the_drawing_has_the_shapes_of_the_paper():
    found = architecture.run()
    assert found.down == [(16, 32, 16), (32, 16, 8), (64, 8, 4), (128, 4, 2), (256, 2, 1)]
    assert found.up == [(128, 4, 2), (64, 8, 4), (32, 16, 8), (16, 32, 16), (1, 64, 32)]
    assert found.facts["bottleneck"] == "8 transformer layers\n4 heads, width 256"
    assert found.log_mel.shape == found.filled.shape
    differs = np.abs(found.log_mel - found.filled).reshape(64, -1, 32).max((0, 2)) > 0
    assert differs.tolist() == found.mask[: len(differs)].tolist()


def test_the_reference_of_commands_has_every_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands.make(tmp_path)
    text = text_of(tmp_path / "commands.md")
    assert re.findall(r"^### (\w+)$", text, re.M) == list(cli.COMMANDS)
    assert re.findall(r"^## (\w+):", text, re.M) == list(cli.GROUPS)


def test_code_that_pages_include_exists():
    for file in FILES:
        for path, options in re.findall(
            r"```\{literalinclude\} (\S+)\n((?::.*\n)*)", text_of(file)
        ):
            tree = ast.parse(text_of(file.parent / path))
            for part in re.search(r":pyobject: (\S+)", options)[1].split("."):
                (tree,) = [node for node in tree.body if getattr(node, "name", "") == part]


# --- the reference ---


def test_pages_of_the_reference_say_which_names_they_list():
    text = "".join(text_of(file) for file in (DOCS / "api").glob("*.md"))
    found = [*reference.MODULE.findall(text), *reference.CLASS.findall(text)]
    assert len(found) == text.count("\n.. auto")


def test_names_of_the_reference_are_documented():
    for name in reference.names():
        assert (name.value.__doc__ or "").strip(), name.place


# --- snippets ---

PAGES = [*FILES, ROOT / "README.md"]
OTHERWISE = {
    "docs/embeddings.md": "tests/docs/test_embeddings.py",
    "docs/cluster.md": "a Ray cluster",
}
PYTHON = [name_of(file) for file in PAGES if "```python\n" in text_of(file)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    chance = np.random.default_rng(0)
    (home / "music").mkdir()
    for name in ("song.mp3", "a.flac", "b.ogg"):
        soundfile.write(home / name, 0.1 * chance.standard_normal(22_050 * 2), 22_050)
    demo = datasets.load("demo")
    for name, clip in zip(("one", "two", "three"), demo.clips[::40], strict=True):
        shutil.copy(clip.path, home / "music" / f"{name}.ogg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "process_pool", ThreadPoolExecutor)
        patch.chdir(home)
        embed_library("music", "music.parquet", workers=1)
    return home


@pytest.mark.parametrize("name", [name for name in PYTHON if name not in OTHERWISE])
def test_python_of_a_page_runs(name, home, monkeypatch, threads):
    monkeypatch.chdir(home)
    files, genres = ["music/one.ogg", "music/two.ogg"], ["a", "b"]
    known = {"files": files, "genres": genres, "others": ["song.mp3"]}
    for block in re.findall(r"```python\n(.+?)```", text_of(ROOT / name), re.DOTALL):
        exec(block, known)
    if "vector" in known:
        assert known["vector"].shape == (known["model"].size,)
        assert f"# {known['model'].size:,} numbers" in text_of(ROOT / name)


def test_python_that_is_run_elsewhere_is_there():
    assert set(OTHERWISE) <= set(PYTHON)
    assert "docs/embeddings.md" in PYTHON
    assert (ROOT / OTHERWISE["docs/embeddings.md"]).is_file()
    for block in re.findall(r"```python\n(.+?)```", text_of(DOCS / "cluster.md"), re.DOTALL):
        ast.parse(block)


# --- built ---


class Resources(HTMLParser):
    """Addresses that a browser fetches when it opens a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        if tag in ("script", "img", "audio", "video", "iframe", "source", "embed", "object"):
            self.found += [facts.get("src"), facts.get("data")]
        if tag == "link" and facts.get("rel") in ("stylesheet", "icon", "preload", "prefetch"):
            self.found.append(facts.get("href"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_other_places(tmp_path):
    folder = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    subprocess.run(
        [sys.executable, "-m", "tools.figures", "--missing"], cwd=ROOT, env=folder, check=True
    )
    words = [
        "-E",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(tmp_path / "trees"),
        "docs",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        env=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    pages = [page for page in pages if "_static" not in page.parts]  # templates of the theme
    assert len(pages) > len(FILES)
    for page in pages:
        parser = Resources()
        parser.feed(text_of(page))
        for link in filter(None, parser.found):
            assert not re.match(r"(\w+:)?//", link), f"{page}: {link}"
            path = urllib.parse.unquote(link.partition("?")[0].partition("#")[0])
            assert (page.parent / path).exists(), f"{page}: {link}"
    listed = "".join(text_of(page) for page in (tmp_path / "site" / "api").glob("*.html"))
    found = re.findall(r'<dt class="sig sig-object py" id="(patchifier[\w.]*)"', listed)
    names = {f"{name.module}.{name.key}" for name in reference.names()}
    assert names <= set(found)
    members = re.compile(rf"({'|'.join(map(re.escape, names))})\.\w+")
    assert all(name in names or members.fullmatch(name) for name in found)
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import ['\"]https?:", text_of(sheet)), sheet


def test_the_table_of_intervals_has_the_numbers_of_its_picture():
    page = (ROOT / "docs" / "concepts" / "intervals.md").read_text(encoding="utf-8")
    assert "\n".join(intervals.rows()) in page


def test_below_each_picture_that_is_made_stands_what_draws_it():
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for picture in re.findall(r"!\[[^\]]*\]\([^)]*made/[^)]*\)\n(.*\n.*)", text):
            assert "make figures" in picture, path

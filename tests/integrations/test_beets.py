"""The plugin in beets itself: a library of tagged files, and the commands that a user types."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import beets
import beets.library
import beets.plugins
import beets.ui
import mutagen
import pytest
import soundfile

from patchifier import checkpoint
from patchifier.checkpoint import Checkpoint
from patchifier.library import build
from patchifier.nn.model import Patchifier
from tests import small

RATE = 22_050
TINY = small.config({**small.WIDE, "max_patches": 25})
TITLES = ("Aria", "Bourr\xe9e", "Courante", "Double")
CONFIG = """
directory: {root}/music
library: {root}/library.db
plugins: patchifier duplicates
import: {{copy: no, write: no, autotag: no}}
ui: {{color: no}}
patchifier: {{model: {model}, workers: 1}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.save(folder, Checkpoint(Patchifier(TINY, seed=0), TINY))
    return folder


@pytest.fixture
def home(tmp_path: Path, model: Path, noise: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of beets' configuration, with music: four pieces, the last the first once more."""
    root = tmp_path / "home"
    for number, title in enumerate(TITLES):
        path = root / "music" / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(2 + number % 3, seed=number % 3), RATE)
        tagged = mutagen.File(path)
        tagged["title"], tagged["artist"], tagged["album"] = title, "Anna", "Notebook"
        tagged.save()
    (root / "config.yaml").write_text(CONFIG.format(root=root, model=model))
    monkeypatch.setenv("BEETSDIR", str(root))
    monkeypatch.setenv("HOME", str(root))
    return root


@pytest.fixture
def beet(
    home: Path, threads: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[str]]]:
    """Run a command of beets in this process; give the lines that it printed."""

    def run(*words: str) -> list[str]:
        monkeypatch.setattr(beets.plugins, "_instances", [])
        beets.config.clear()
        beets.config.read()
        capsys.readouterr()
        beets.ui._raw_main(list(words))
        return capsys.readouterr().out.splitlines()

    run("import", "-q", str(home / "music"))
    yield run
    beets.config.clear()


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "music").iterdir()}


def fields(home: Path) -> list[dict[str, object]]:
    library = beets.library.Library(str(home / "library.db"))
    return [dict(item) for item in library.items()]


def test_the_library_is_embedded_into_a_table_beside_the_configuration(
    beet: Callable[..., list[str]], home: Path
) -> None:
    before, stored = contents(home), fields(home)
    (line,) = beet("patchifier")
    assert line.startswith("4 rows about 4 files; 4 embedded now")
    rows = build.read(home / "patchifier.parquet")
    assert rows.tags["title"] == TITLES
    assert beet("patchifier")[-1].startswith("4 rows about 4 files; 0 embedded now")
    assert (contents(home), fields(home)) == (before, stored)


def test_a_file_that_beets_moves_or_forgets_is_not_embedded_again(
    beet: Callable[..., list[str]], home: Path
) -> None:
    beet("patchifier")
    beet("modify", "-y", "-w", "-M", "title:Aria", "title=Air", "artist=Bach")
    beet("remove", "-f", "title:Courante")
    beet("move", "title:Air")
    (*gone, line) = beet("patchifier")
    assert line.startswith("3 rows about 3 files; 0 embedded now")
    assert "1 moved among these" in line
    assert [Path(one).name for one in gone] == ["2.flac"]
    assert "Air" in build.read(home / "patchifier.parquet").tags["title"]


def test_similar_lists_others_by_similarity(beet: Callable[..., list[str]], home: Path) -> None:
    beet("patchifier")
    lines = beet("similar", "title:Aria")
    assert {line.split("  ")[1].split(" - ")[-1] for line in lines} == set(TITLES[1:])
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], lines[0].split("  ")[1]) == (1.0, "Anna - Notebook - Double")
    (line,) = beet("similar", "-n", "1", "-f", "$title", "title:Aria", ",", "title:Double")
    assert line.split("  ")[1] in TITLES[1:3]


def test_items_that_left_the_library_are_no_result(
    beet: Callable[..., list[str]], home: Path
) -> None:
    beet("patchifier")
    beet("remove", "-f", "title:Double")
    lines = beet("similar", "-f", "$title", "title:Aria")
    assert {line.split("  ")[1] for line in lines} == set(TITLES[1:3])


def test_pairs_that_sound_the_same_are_listed_beside_the_command_of_beets(
    beet: Callable[..., list[str]],
) -> None:
    beet("patchifier")
    lines = beet("sound-duplicates", "-t", "0.99999", "-f", "$title")
    assert lines == ["1.0000  Aria  ==  Double"]
    assert beet("duplicates") == []  # no tags are the same


def test_fields_are_written_only_when_asked_for(
    beet: Callable[..., list[str]], home: Path, noise: Callable
) -> None:
    clicks = noise(8, level=0.001)
    clicks[:: RATE // 2] = 0.9
    soundfile.write(home / "music" / "clicks.flac", clicks, RATE)
    beet("import", "-q", str(home / "music" / "clicks.flac"))
    before = contents(home)
    lines = beet("patchifier", "--fields", "path:" + str(home / "music" / "clicks.flac"))
    assert "  bpm: 0 -> 120" in lines
    assert contents(home) == before
    assert {item["bpm"] for item in fields(home)} == {0, 120}
    assert beet("patchifier", "--fields", "bpm:120") == []
    beet("modify", "-y", "-W", "bpm:120", "bpm=0")
    beet("patchifier", "--fields", "--write", "path:" + str(home / "music" / "clicks.flac"))
    assert mutagen.File(home / "music" / "clicks.flac")["bpm"] == ["120"]
    assert {name for name, content in contents(home).items() if content != before[name]} == {
        "clicks.flac"
    }


@pytest.mark.parametrize(
    "words",
    [
        ("similar", "title:Aria"),
        ("sound-duplicates",),
        ("patchifier", "title:Aria"),
        ("patchifier", "--write"),
    ],
)
def test_requests_that_cannot_be_met_are_errors_of_beets(
    words: tuple[str, ...], beet: Callable[..., list[str]]
) -> None:
    with pytest.raises(beets.ui.UserError):
        beet(*words)


def test_a_query_without_a_match_is_refused(beet: Callable[..., list[str]]) -> None:
    beet("patchifier")
    for words in (("similar", "title:Nothing"), ("similar",)):
        with pytest.raises(beets.ui.UserError):
            beet(*words)


def test_a_library_whose_files_are_away_keeps_its_table(
    beet: Callable[..., list[str]], home: Path
) -> None:
    beet("patchifier")
    before = (home / "patchifier.parquet").read_bytes()
    (home / "music").rename(home / "away")
    with pytest.raises(beets.ui.UserError):
        beet("patchifier")
    assert (home / "patchifier.parquet").read_bytes() == before


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(home: Path, child_environment: dict[str, str]) -> None:
    """With real processes and the bundled model."""
    (home / "config.yaml").write_text(CONFIG.format(root=home, model="patchifier-base"))
    program = shutil.which("beet", path=os.path.dirname(sys.executable)) or "beet"

    def run(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": child_environment["PYTHONPATH"]}
        return subprocess.check_output([program, *words], env=environment, text=True)

    run("import", "-q", str(home / "music"))
    assert "4 embedded now" in run("patchifier")
    assert len(run("similar", "title:Aria").splitlines()) == 3
    assert run("sound-duplicates", "-t", "0.999", "-f", "$title").endswith("Aria  ==  Double\n")

"""The page's libraries are the files that were checked, and the page names no other place."""

import hashlib
import re
from pathlib import Path

import patchifier

PAGE = Path(patchifier.__file__).parent / "app" / "page"
VENDOR = PAGE / "vendor"
OWN = sorted(path for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".html"))


def test_vendored_files_have_the_recorded_hashes():
    recorded = dict(
        reversed(line.split("  ")) for line in (VENDOR / "HASHES").read_text().splitlines()
    )
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "HASHES"
    }


def test_every_vendored_package_has_its_licence():
    text = (VENDOR / "LICENCES.txt").read_text()
    for name in ("wavesurfer.js", "regl-scatterplot", "regl", "pub-sub-es", "earcut", "gl-matrix"):
        assert re.search(rf"^{re.escape(name)} \d+\.\d+\.\d+ \(", text, re.M), name


def test_page_names_no_other_place():
    found = [
        path.name
        for path in OWN
        if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())
    ]
    assert OWN
    assert not found


def test_what_a_file_of_the_page_imports_exists():
    named = {
        name
        for path in OWN
        for name in re.findall(r'(?:from|src=|href=)\s*"(\./[^"]+)"', path.read_text())
    }
    assert len(named) > 20
    assert {name for name in named if (PAGE / name).is_file()} == named


def test_tags_reach_the_page_as_text_alone():
    for path in OWN:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", path.read_text()
        ), path.name

"""What is built holds the models: a wheel that was installed needs no network for its first vector.

What it needs is named: floors above known vulnerabilities, versions with hashes, a list of all.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from patchifier import system
from tests import ROOT

FILES = ("config.json", "model.safetensors", "graph.onnx", "README.md")
MODEL = "patchifier-of-the-test"


def tree(root):
    """Copy what is built from."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def build(root, *flags, **options):
    """Build in this folder; the folder of what was built."""
    made = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(root / "dist"), *flags],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert made.returncode == 0, made.stderr
    return root / "dist"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of this tree with one more model, and the files of all of its models and heads."""
    root = tree(tmp_path_factory.mktemp("tree"))
    folder = root / "src" / "patchifier" / "weights" / MODEL
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("x")
    weights = root / "src" / "patchifier" / "weights"
    for path in weights.rglob("*"):
        if path.suffix in (".safetensors", ".onnx"):
            path.write_text("x")  # packing megabytes takes seconds, and only names are read
    inside = [
        f"weights/{path.relative_to(weights).as_posix()}"
        for path in weights.glob("*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return build(root), inside


def test_wheel_and_sdist_hold_every_file_of_every_model(built):
    folder, inside = built
    assert {f"weights/{MODEL}/{name}" for name in FILES} <= set(inside)
    assert "weights/heads/drums/head.safetensors" in inside
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        assert {f"patchifier/{file}" for file in inside} <= set(names)
        assert {
            "patchifier/weights/__init__.py",
            "patchifier/weights/older.json",
            "beetsplug/patchifier.py",
        } <= set(names)
    with tarfile.open(sdist) as content:
        assert {
            f"{sdist.name.removesuffix('.tar.gz')}/src/patchifier/{file}" for file in inside
        } <= set(content.getnames())


def test_the_models_of_a_wheel_are_found_without_the_tree(built, tmp_path, child_environment):
    folder, _ = built
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "installed")
    code = "import patchifier; from patchifier import weights; print(patchifier.__file__); print(*weights.names())"
    environment = child_environment | {"PYTHONPATH": str(tmp_path / "installed")}
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith(str(tmp_path / "installed"))
    assert MODEL in said.split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_the_wheel_has_the_same_bytes_in_any_folder_at_any_time_with_any_rights(tmp_path):
    (epoch,) = re.findall(r"SOURCE_DATE_EPOCH = (\d+)$", (ROOT / "Makefile").read_text(), re.M)
    environment = {key: text for key, text in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    ways = {"plain": ({}, 0o777), "make wheel": ({"SOURCE_DATE_EPOCH": epoch}, 0o700)}
    sums = set()
    for at, (name, (more, rights)) in enumerate(ways.items()):
        (tmp_path / name).mkdir()
        root = tree(tmp_path / name)
        for path in root.rglob("*.*"):
            if path.is_file():
                path.chmod(path.stat().st_mode & rights)
                os.utime(path, (1e9 + at * 1e8, 1e9 + at * 1e8))
        zone = {"TZ": f"UTC{5 * at:+}"}
        (wheel,) = build(
            root, "-t", "wheel", env=environment | more | zone, umask=0o777 - rights
        ).iterdir()
        sums.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(sums) == 1


# --- versions ---

KNOWN = {  # package -> last version with a known vulnerability, which one
    "torch": ("2.12.1", "CVE-2026-4538 (pt2 files), CVE-2025-3000 (jit.script)"),
    "pyarrow": ("23.0.0", "CVE-2026-25087"),
    "av": ("17.1.0", "CVE-2026-8461: its wheel brings FFmpeg 8.1.1"),
    "ray": ("2.54.1", "CVE-2025-62593, CVE-2026-27482, CVE-2026-32981"),
    "onnx": ("1.20.1", "CVE-2026-27489, CVE-2026-28500, CVE-2026-34445"),
    "transformers": ("5.4.0", "CVE-2026-5241, CVE-2026-4372"),
    "starlette": ("1.3.0", "CVE-2026-54283, CVE-2026-54282, CVE-2026-48710"),
    "jinja2": ("3.1.5", "CVE-2025-27516"),
    "scikit-learn": ("1.4.2", "CVE-2024-5206"),
    "filelock": ("3.20.2", "CVE-2026-22701"),
}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }


def stated() -> list[Requirement]:
    """What pyproject.toml asks for, in all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for lines in lists for line in lines]
    return [one for one in found if one.name != "patchifier"]


def requirements(name: str, extra: str) -> list[Requirement]:
    """Requirements of an installed package on this machine, with an extra or without any (""); none if it is not installed."""
    try:
        found = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_every_extra_is_pinned_to_versions_that_go_together():
    """What ``pip install -c constraints.txt '.[all]'`` installs, followed as far as packages are installed here."""
    wanted = stated()
    pinned, seen = pins(), set[tuple[str, str]]()
    assert {canonicalize_name(one.name) for one in wanted} <= pinned.keys()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        if name in pinned:
            assert one.specifier.contains(pinned[name], prereleases=True), (str(one), pinned[name])
        for extra in {"", *one.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                wanted += requirements(name, extra)


@pytest.mark.parametrize("name", KNOWN)
def test_no_floor_admits_a_known_vulnerability(name):
    bad, which = KNOWN[name]
    asked = [one for one in stated() if canonicalize_name(one.name) == name]
    assert asked
    assert not [one for one in asked if one.specifier.contains(bad)], which


def test_wheel_holds_every_file_of_the_page(built):
    (wheel,) = built[0].glob("*.whl")
    page = ROOT / "src" / "patchifier" / "app" / "page"
    files = {
        path.relative_to(ROOT / "src").as_posix() for path in page.rglob("*") if path.is_file()
    }
    with zipfile.ZipFile(wheel) as content:
        assert "patchifier/app/page/vendor/LICENCES.txt" in files <= set(content.namelist())


# --- hashes ---


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes of each package in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line.split("--hash=") for line in text.splitlines() if line[:1] != "#"]
    found = [(Requirement(line[0]), [entry.strip() for entry in line[1:]]) for line in lines]
    return {canonicalize_name(one.name): (one, hashes) for one, hashes in found}


def test_every_locked_package_has_hashes():
    for name, (_, hashes) in locked().items():
        assert hashes, name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", entry) for entry in hashes), name


def test_the_lock_has_the_versions_of_the_constraints():
    """What only the lock names is for other systems or Pythons: CUDA, Windows, emscripten."""
    pinned, found = pins(), {name: one for name, (one, _) in locked().items()}
    apart = {name for name, one in found.items() if str(one.specifier) != f"=={pinned.get(name)}"}
    assert not apart & pinned.keys()
    assert all(found[name].marker for name in apart)
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = dev["dev"] + dev["docs"]
    tools = {canonicalize_name(Requirement(line).name) for line in lines} - {"patchifier"}
    assert {canonicalize_name(one.name) for one in stated()} - tools <= found.keys()


def test_the_lock_names_no_registry():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.findall(r"^ *-(?!-hash=sha256:)|://| @ |file:", text, re.M)


def pip_download(to, packages: list[str], spoilt: str = "") -> subprocess.CompletedProcess[str]:
    """Let pip download packages by their lines of the lock."""
    chosen = [locked()[name] for name in packages]
    lines = [
        " ".join(
            [
                str(one),
                *(
                    f"--hash={'sha256:' + 64 * '0' if spoilt == one.name else entry}"
                    for entry in hashes
                ),
            ]
        )
        for one, hashes in chosen
    ]
    (to / "some.lock").write_text("\n".join(lines) + "\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    return subprocess.run(
        [*pip, "-r", to / "some.lock", "-d", to / "got"], capture_output=True, text=True
    )


@pytest.mark.slow
def test_what_is_locked_can_be_had_and_nothing_else(tmp_path):
    packages = ["filelock", "mutagen", "soundfile", "soxr"]
    done = pip_download(tmp_path, packages)
    if "No matching distribution found" in done.stderr:
        pytest.skip("needs a registry of packages")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "got").iterdir())) == len(packages)
    spoilt = pip_download(tmp_path, packages, spoilt="soxr")
    assert spoilt.returncode
    assert "DO NOT MATCH THE HASHES" in spoilt.stderr


# --- a list of all ---


@pytest.mark.slow
def test_the_sbom_is_valid_and_names_what_is_locked_and_what_wheels_bring(
    tmp_path, child_environment
):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    out = tmp_path / "dist" / "patchifier.cdx.json"
    command = [sys.executable, ROOT / "tools" / "sbom.py", out]
    subprocess.run(command, check=True, env=child_environment)
    bom = json.loads(out.read_text())
    version = SchemaVersion.from_version(bom["specVersion"])
    assert JsonStrictValidator(version).validate_str(out.read_text()) is None
    named = {(canonicalize_name(one["name"]), one["version"]) for one in bom["components"]}
    assert named == {
        (name, str(one.specifier).removeprefix("==")) for name, (one, _) in locked().items()
    }
    inside = {
        (one["name"], part["name"], part["version"])
        for one in bom["components"]
        for part in one.get("components", [])
    }
    brought = [one for one in system.libraries() if one.package in locked() and one.version]
    assert inside == {(one.package, one.name, one.version) for one in brought}
    assert {"libsndfile", "FFmpeg"} <= {name for _, name, _ in inside}


def test_the_citation_is_of_the_software_refers_to_the_paper_and_bibtex_says_the_same():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    bibtex = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "preferred-citation:" not in text  # it would be cited instead of the software
    software, paper = text.split("references:\n")
    assert "\ntype: software\n" in software
    assert paper.startswith("  - type: article\n")
    for field in ("year: 2022", "url: https://arxiv.org/abs/2210.15988"):
        assert f"\n    {field}\n" in paper
    version = re.search(r"^version: (\S+)$", software, re.M)[1]
    released = re.search(r"^date-released: (\d{4})-", software, re.M)[1]
    assert "Spectrograms are sequences of patches" in paper
    for said in (
        "{Spectrograms are sequences of patches}",
        "arXiv:2210.15988",
        "{2022}",
        f"{{{version}}}",
        f"{{{released}}}",
    ):
        assert said in bibtex

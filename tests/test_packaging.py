"""What is built holds the models: a wheel that was installed needs no network for its first vector."""

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

from tests import ROOT

FILES = ("config.json", "model.safetensors", "graph.onnx", "README.md")
MODEL = "patchifier-of-the-test"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of this tree with one more model, and the files of all of its models."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = root / "src" / "patchifier" / "weights" / MODEL
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("x")
    made = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(root / "dist")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    inside = [
        f"weights/{path.parent.name}/{path.name}"
        for path in (root / "src" / "patchifier" / "weights").glob("*/*")
    ]
    return root / "dist", inside


def test_wheel_and_sdist_hold_every_file_of_every_model(built):
    folder, inside = built
    assert {f"weights/{MODEL}/{name}" for name in FILES} <= set(inside)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        assert {f"patchifier/{file}" for file in inside} <= set(names)
        assert "patchifier/weights/__init__.py" in names
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


# --- versions ---


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }


def requirements(name: str, extra: str) -> list[Requirement]:
    """Requirements of an installed package on this machine, with an extra or without any (""); none if it is not installed."""
    try:
        found = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_every_extra_is_pinned_to_versions_that_go_together():
    """What ``pip install -c constraints.txt '.[all]'`` installs, followed as far as packages are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(line) for lines in lists for line in lines]
    wanted = [one for one in wanted if one.name != "patchifier"]
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

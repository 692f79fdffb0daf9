"""What is built holds the models: a wheel that was installed needs no network for its first vector."""

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests import ROOT

FILES = ("config.json", "model.safetensors", "README.md")
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

"""The example in JavaScript gives the vectors of this package."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

import patchifier
from patchifier.integrations import onnx
from tests import ROOT
from tests.integrations.examples import require_bad_files_named

pytestmark = pytest.mark.app
RUNTIME = "onnxruntime-node@1.30.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    npm = shutil.which("npm")
    assert npm, "npm is missing: apt-get install npm"
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "package.json").write_text("{}")
    # the script of the package downloads a runtime for GPUs
    subprocess.run(
        [npm, "install", "--ignore-scripts", RUNTIME], cwd=folder, check=True, capture_output=True
    )
    shutil.copy(ROOT / "examples" / "onnx_embed.mjs", folder)
    onnx.export("patchifier-base", folder / "model.onnx")
    return folder


def run(folder, *files):
    return subprocess.run(
        ["node", "onnx_embed.mjs", "model.onnx", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_vectors_of_the_example_in_javascript_are_those_of_the_package(folder):
    rng = np.random.default_rng(0)
    for name, seconds, kind in (("short.wav", 1, "PCM_16"), ("long.wav", 40, "FLOAT")):
        sound = (
            0.1 * rng.standard_normal((seconds * 22_050, 2))
            + 0.2 * np.sin(np.arange(seconds * 22_050) / 9)[:, None]
        )
        soundfile.write(folder / name, sound.astype(np.float32), 22_050, subtype=kind)
    found = run(folder, "short.wav", "long.wav")
    assert found.returncode == 0, found.stderr
    vectors = np.array([json.loads(line)["embedding"] for line in found.stdout.splitlines()])
    expected = patchifier.load().embed([folder / "short.wav", folder / "long.wav"])
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    errors = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1e-4


def test_files_that_cannot_be_read_are_named(folder):
    require_bad_files_named(run, folder)

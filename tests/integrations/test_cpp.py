"""The example in C++ gives the vectors of this package."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile

import patchifier
from patchifier import audio
from patchifier.integrations import onnx
from tests import ROOT
from tests.integrations.examples import require_bad_files_named

pytestmark = pytest.mark.slow
GOLDEN = ROOT / "tests" / "golden"
HEADER = "onnxruntime_cxx_api.h"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example, compiled with the library of the package of Python, and an exported model."""
    compiler = shutil.which("c++")
    libraries = list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not compiler or not libraries:
        pytest.skip("a compiler of C++, or a library of ONNX Runtime that it can link, is missing")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "header.cpp").write_text(f"#include <{HEADER}>")
    standard = [compiler, "-std=c++17"]
    found = subprocess.run(
        [*standard, "-fsyntax-only", "header.cpp"], cwd=folder, check=False, capture_output=True
    )
    if found.returncode:
        pytest.skip(f"{HEADER} is missing: set CPLUS_INCLUDE_PATH to its folder")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # linked by one, loaded by the other
        (folder / name).symlink_to(libraries[0])
    example = ROOT / "examples" / "onnx_embed.cpp"
    linked = [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    subprocess.run([*standard, example, *linked, "-o", "onnx_embed"], cwd=folder, check=True)
    onnx.export("patchifier-base", folder / "model.onnx")
    return folder


def run(folder, *files):
    return subprocess.run(
        ["./onnx_embed", "model.onnx", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )


def vectors_of(found):
    assert found.returncode == 0, found.stderr
    return np.array([json.loads(line)["embedding"] for line in found.stdout.splitlines()])


def test_the_example_gives_the_stored_vectors(folder):
    with np.load(GOLDEN / "embedding.npz") as sound:
        wave = sound["pcm"].astype(np.float32) / 32768
    sounds = {"short": wave, "long": np.tile(wave, 6)}
    for name, samples in sounds.items():
        resampled = audio.as_waveform(samples, 16_000)
        soundfile.write(folder / f"{name}.wav", resampled, 22_050, subtype="FLOAT")
    found = vectors_of(run(folder, *(f"{name}.wav" for name in sounds)))
    with np.load(GOLDEN / "patchifier-base.npz") as stored:
        for vector, name in zip(found, sounds, strict=True):
            expected = stored[name]
            assert np.linalg.norm(vector - expected) < 1e-4 * np.linalg.norm(expected), name


def test_channels_and_integers_are_read_as_the_package_reads_them(folder):
    rng = np.random.default_rng(0)
    for name, kind in (("integers.wav", "PCM_16"), ("floats.wav", "FLOAT")):
        sound = 0.1 * rng.standard_normal((5 * 22_050, 2)).astype(np.float32)
        soundfile.write(folder / name, sound, 22_050, subtype=kind)
    found = vectors_of(run(folder, "integers.wav", "floats.wav"))
    expected = patchifier.load().embed([folder / "integers.wav", folder / "floats.wav"])
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1e-4


def test_files_that_cannot_be_read_are_named(folder):
    require_bad_files_named(run, folder)

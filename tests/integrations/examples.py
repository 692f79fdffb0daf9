"""What every example that embeds wav files has to do, in whatever language it is written."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

Run = Callable[..., subprocess.CompletedProcess[str]]


def require_bad_files_named(run: Run, folder: Path) -> None:
    """Check that an example, run in a folder with names of files, names those it cannot read."""
    soundfile.write(folder / "other.wav", np.zeros(100), 44_100)
    (folder / "text.wav").write_text("no sound")
    found = run(folder, "other.wav", "text.wav", "missing.wav")
    assert found.returncode == 1
    names = [line.split(":")[0] for line in found.stderr.splitlines()]
    assert names == ["other.wav", "text.wav", "missing.wav"]

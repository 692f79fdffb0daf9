"""Compile the plugin of Navidrome: src/patchifier/integrations/navidrome/plugin.wasm.

    python tools/navidrome_plugin.py       # uv takes the compiler from PyPI, 100 MB

ziglang holds a C compiler for every target. One version of it writes the same bytes everywhere, and
a test compares them with those of the repository.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src" / "patchifier" / "integrations" / "navidrome"
COMPILER = "ziglang==0.17.1"
TARGET = ("-target", "wasm32-freestanding", "-mcpu=mvp")  # what every runtime of WebAssembly reads
WARNINGS = ("-Wall", "-Wextra", "-Werror")
ALONE = ("-std=c11", "-Os", "-ffreestanding", "-fno-builtin", "-nostdlib", "-s", "-Wl,--no-entry")


def build() -> bytes:
    """Return the module."""
    uv = (sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--with", COMPILER)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "plugin.wasm")
        zig = ("python", "-m", "ziglang", "cc", *TARGET, *WARNINGS, *ALONE, "-o", str(out))
        subprocess.run([*uv, *zig, "plugin.c"], cwd=FOLDER, check=True)
        return out.read_bytes()


if __name__ == "__main__":
    (FOLDER / "plugin.wasm").write_bytes(build())

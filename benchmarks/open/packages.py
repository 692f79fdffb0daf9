"""Download and unpack the packages of Debian and of PyPI below the root. Nothing is installed."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groups import require_free

from patchifier.config import RequestError

MUSIC = (  # recordings for development
    "ufoai-music", "warzone2100-music", "naev-data", "supertuxkart-data", "hyperrogue-music", "singularity-music", "unknown-horizons",
    "planetblupi-music-ogg", "asc-music", "fretsonfire-songs-sectoid", "fretsonfire-songs-muldjord", "lincity-ng-data",
)  # fmt: skip
MORE_MUSIC = (  # for training data alone, in no task
    "freedroidrpg-data", "widelands-data", "megaglest-data", "pushover-data", "warmux-data", "starfighter-data", "openclonk-data", "enigma-data",
    "extremetuxracer-data", "btanks-data", "fillets-ng-data", "lordsawar-data", "zaz-data",
)  # fmt: skip
TOOLS = ("fluid-soundfont-gm", "csound-soundfont", "mma")
# Pure Python except the synthesiser. Installed without dependencies: tinysoundfont needs pyaudio for live playback alone.
PYTHON = (
    "music21==10.5.1",
    "tinysoundfont==0.3.7",
    "chardet",
    "joblib",
    "jsonpickle",
    "more-itertools",
    "webcolors",
)


def fetch(root: Path, progress: Callable[[str], Any]) -> None:
    """Download and unpack all missing packages: about 3 GB, 6 GB unpacked."""
    wanted = (*TOOLS, *MUSIC, *MORE_MUSIC)
    shown = progress("packages")
    for number, name in enumerate(wanted, 1):
        shown(number, len(wanted), name)
        unpack(root, name)
    prepare_mma(root / "deb" / "mma")
    install_python(root / "python")


def unpack(root: Path, name: str) -> None:
    """Download one package and unpack it into ROOT/deb/NAME, unless that is done."""
    require_free(name)
    folder, downloads = root / "deb" / name, root / "dl"
    if (folder / ".unpacked").exists():
        return
    downloads.mkdir(parents=True, exist_ok=True)
    if not any(downloads.glob(f"{name}_*.deb")):
        as_root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        _run(
            ["apt-get", *as_root, "-q", "download", name],
            downloads,
            f"the package {name} cannot be had: run 'apt-get update' once, then this again.",
        )
    file = max(downloads.glob(f"{name}_*.deb"))
    folder.mkdir(parents=True, exist_ok=True)
    _run(
        ["dpkg", "-x", str(file), str(folder)],
        downloads,
        f"{file} cannot be unpacked: delete it, then run this again.",
    )
    for archive in folder.rglob("*.pk3"):  # zip files that hold the music of some games
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder / "_pk3")
    (folder / ".unpacked").write_text(f"{file.name}\n", encoding="utf-8")


def prepare_mma(folder: Path) -> None:
    """Copy mma's script to its library, and let it list its grooves."""
    place = folder / "usr/share/mma"
    if (place / "lib" / ".mmaDB").exists() and (place / "mma.py").exists():
        return
    (place / "mma.py").write_bytes((folder / "usr/bin/mma").read_bytes())
    (place / "plugins").mkdir(exist_ok=True)
    _run([sys.executable, str(place / "mma.py"), "-G"], place, "mma cannot list its grooves.")


def install_python(folder: Path) -> None:
    """Install the packages of PyPI into their own folder, and append it to the path."""
    if not (folder / ".ready").exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            str(folder),
            *PYTHON,
        ]
        _run(command, folder.parent, "the Python packages cannot be had.")
        (folder / ".ready").write_text("\n".join(PYTHON) + "\n", encoding="utf-8")
    sys.path.append(str(folder))


def _run(command: list[str], folder: Path, otherwise: str) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RequestError(
            f"{otherwise} {' '.join(command[:3])} says: {(done.stderr or done.stdout).strip()[-300:]}"
        )

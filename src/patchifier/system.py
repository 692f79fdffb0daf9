"""Versions of this installation, with C libraries inside wheels, and their known vulnerabilities.

Those libraries read strangers' files. pip does not show them, and a wheel may be older than the fix
of a library inside it.
"""

import platform
import re
import ssl
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import patchifier

PACKAGES = (
    "numpy", "onnxruntime", "torch", "soundfile", "soxr", "av", "mutagen", "pyarrow", "safetensors",
)  # fmt: skip
CODECS = {  # inside the one library file of soundfile's wheels; no function gives these versions
    "mpg123": rb"\0(1\.[23]\d\.\d+)\0",
    "FLAC": rb"reference libFLAC (\d[\d.]*)",
    "Vorbis": rb"libVorbis (\d[\d.]*)",
    "Opus": rb"libopus (\d[\d.]*)",
}
SYSTEM_LIBSNDFILE = (
    "no wheel of soundfile has the fix; on Linux and macOS 'pip install --no-binary soundfile "
    "soundfile' takes the system's libsndfile, which distributions patch"
)
REFUSED = "this package refuses that codec; open no stranger's file with PyAV by other means"


@dataclass(frozen=True)
class Library:
    """A C library; its version is empty if it cannot be known. The package is what brings it."""

    name: str
    version: str
    package: str


@dataclass(frozen=True)
class Advisory:
    """A known vulnerability of a library below a version, and a remedy."""

    library: str
    below: str
    cve: str
    remedy: str


ADVISORIES = (
    Advisory("mpg123", "1.32.8", "CVE-2024-10573", SYSTEM_LIBSNDFILE),
    Advisory("libsndfile", "1.2.3", "CVE-2022-33065 and CVE-2024-50612", SYSTEM_LIBSNDFILE),
    Advisory("FFmpeg", "8.1", "CVE-2026-40962", "pip install 'av>=18'"),
    Advisory("FFmpeg", "8.1.2", "CVE-2026-8461 (MagicYUV)", "pip install 'av>=18'"),
    Advisory("FFmpeg", "8.1.3", "CVE-2026-64835 (ADX) and CVE-2026-125267 (APAC)", REFUSED),
)


def describe() -> dict[str, Any]:
    """Describe this installation.

    Returns
    -------
    dict
        "patchifier", "python" and "platform"; "packages", a dict of versions; "libraries", a list
        of dicts with the fields of :class:`Library`; "warnings", a list of lines.

    Examples
    --------
    >>> describe()["packages"]["soundfile"]  # doctest: +SKIP
    '0.14.0'
    """
    found = libraries()
    return {
        "patchifier": patchifier.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES if find_spec(name)},
        "libraries": [asdict(library) for library in found],
        "warnings": warnings(found),
    }


def warnings(found: Sequence[Library]) -> list[str]:
    """One line for each known vulnerability of these libraries.

    The system's own are left out: distributions mend them without a new version.

    Examples
    --------
    >>> warnings([Library("mpg123", "1.32.8", "soundfile")])
    []
    """
    return [
        f"{library.name} {library.version}, in {library.package}, has {advisory.cve}: "
        f"{advisory.remedy}."
        for library in found
        for advisory in ADVISORIES
        if library.name == advisory.library and library.package != "system"
        if () < _numbers(library.version) < _numbers(advisory.below)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """Numbers of a version: "n8.1.2-3" is (8, 1, 2); empty for a name such as "N-118-gabc"."""
    found = re.match(r"n?(\d+(\.\d+)*)", version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def libraries() -> list[Library]:
    """List the C libraries that decode, resample, unpack and download here."""
    import soundfile
    import soxr

    inside = _codecs()
    resampler = soxr.__libsoxr_version__.removeprefix("libsoxr-")
    return [
        Library(
            "libsndfile", soundfile.__libsndfile_version__, "soundfile" if inside else "system"
        ),
        *inside,
        Library("libsoxr", resampler, "soxr"),
        *_ffmpeg(),
        Library("zlib", zlib.ZLIB_RUNTIME_VERSION, "Python"),
        Library("OpenSSL", ssl.OPENSSL_VERSION.split()[1], "Python"),
    ]


def _codecs() -> list[Library]:
    """Codecs inside libsndfile; none if it is the system's, whose codecs are files of their own."""
    wheel = find_spec("_soundfile_data")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    files = [file for folder in folders for file in Path(folder).glob("libsndfile*")]
    return codecs(files[0].read_bytes()) if files else []


def codecs(binary: bytes) -> list[Library]:
    """Read the versions of codecs out of the bytes of a libsndfile that holds them."""
    found = {name: set(re.findall(pattern, binary)) for name, pattern in CODECS.items()}
    return [
        Library(name, texts.pop().decode() if len(texts) == 1 else "", "soundfile")
        for name, texts in found.items()
    ]


def _ffmpeg() -> list[Library]:
    if not find_spec("av"):
        return []
    import av

    parts = {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
    versions = {"FFmpeg": av.ffmpeg_version_info, **parts}
    return [Library(name, version, "av") for name, version in versions.items()]

"""What is installed here, and what is known against it."""

import json

import pytest
import soundfile

from patchifier import cli, system
from patchifier.decode import CODECS, FORMATS
from patchifier.system import Library, warnings

BOUNDS = [  # library, last version with it, first without, what it is
    ("mpg123", "1.32.7", "1.32.8", "CVE-2024-10573"),
    ("libsndfile", "1.2.2", "1.2.3", "CVE-2022-33065 and CVE-2024-50612"),
    ("FFmpeg", "8.0.1", "8.1", "CVE-2026-40962"),
    ("FFmpeg", "8.1.1", "8.1.2", "CVE-2026-8461"),
    ("FFmpeg", "8.1.2", "8.1.3", "CVE-2026-64835 (ADX) and CVE-2026-125267 (APAC)"),
]


@pytest.mark.parametrize(("name", "bad", "good", "cve"), BOUNDS)
def test_each_known_vulnerability_ends_at_its_version(name, bad, good, cve):
    (said,) = [line for line in warnings([Library(name, bad, "a wheel")]) if cve in line]
    assert said.startswith(f"{name} {bad}, in a wheel, has {cve}")
    assert not [line for line in warnings([Library(name, good, "a wheel")]) if cve in line]


def test_every_row_of_the_table_has_a_bound_here():
    assert [(one.library, one.below) for one in system.ADVISORIES] == [row[::2] for row in BOUNDS]


@pytest.mark.parametrize(("version", "count"), [("n8.1.2-3ubuntu1", 1), ("N-118-gabc", 0), ("", 0)])
def test_versions_as_distributions_write_them(version, count):
    assert len(warnings([Library("FFmpeg", version, "av")])) == count


def test_a_library_of_the_system_is_patched_without_a_new_version():
    assert warnings([Library("libsndfile", "1.2.2", "system")]) == []


def test_codecs_are_read_out_of_a_library_file():
    binary = (
        b"\0reference libFLAC 1.4.3 20230623\0libopus 1.5.2\0\x001.32.3\0Xiph.Org libVorbis 1.3.7\0"
    )
    versions = {library.name: library.version for library in system.codecs(binary)}
    assert versions == {"mpg123": "1.32.3", "FLAC": "1.4.3", "Vorbis": "1.3.7", "Opus": "1.5.2"}
    two = system.codecs(binary + b"\x001.29.0\0")
    assert two[0] == Library("mpg123", "", "soundfile")  # which of the two is not known


def test_the_libraries_of_this_machine_are_known():
    found = {library.name: library for library in system.libraries()}
    assert found["libsndfile"].version == soundfile.__libsndfile_version__
    if found["libsndfile"].package == "soundfile":
        assert found["FLAC"].version
        assert found["Opus"].version
    av = pytest.importorskip("av")
    assert found["FFmpeg"].version == av.ffmpeg_version_info
    assert found["libavcodec"].version == ".".join(map(str, av.library_versions["libavcodec"]))


def test_codecs_that_a_warning_calls_refused_are_refused():
    assert not {"adx", "apac", "magicyuv"} & {*CODECS, *FORMATS.split(",")}


def test_the_command_lists_versions_and_warns(monkeypatch, capsys):
    old = [Library("mpg123", "1.32.3", "soundfile"), Library("Opus", "", "soundfile")]
    monkeypatch.setattr(system, "libraries", lambda: old)
    assert cli.main(["info", "--system"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("mpg", "Op"))] == [
        ["mpg123", "1.32.3", "in", "soundfile"],
        ["Opus", "unknown", "in", "soundfile"],
    ]
    assert lines[-1].startswith("warning: mpg123 1.32.3, in soundfile, has CVE-2024-10573")
    assert cli.main(["info", "--system", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["libraries"][0] == {"name": "mpg123", "version": "1.32.3", "package": "soundfile"}
    assert len(facts["warnings"]) == 1


def test_the_command_takes_no_path_with_it(capsys):
    assert cli.main(["info", "somewhere", "--system"]) == 2
    assert "expected no path, got somewhere" in capsys.readouterr().err

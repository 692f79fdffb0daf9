"""Files that every part shares: CSV cells, lines about skipped files."""

import csv
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from patchifier import io

TRICKY = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "-1+1",
    "'=x",
    "''-y",
    "\tx",
    "=",
    "'plain",
    "a=b",
]
NUMBERS = ["-0.5", "+1e-3", "-inf", -2.0, 7, None]


@pytest.mark.parametrize("text", TRICKY)
def test_text_that_a_spreadsheet_would_compute_is_guarded_and_read_back(text: str) -> None:
    cell = io.to_cell(text)
    assert cell[0] not in "=+-@\t\r"
    assert io.from_cell(cell) == text


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_are_written_as_they_are(value: object) -> None:
    assert io.to_cell(value) == value


def test_tables_guard_their_columns_and_cells_and_keep_the_order_of_the_first_row(
    tmp_path: Path,
) -> None:
    io.write_rows(tmp_path / "t.csv", [{"=a": "=1", "b": -1}, {"b": "-2", "=a": "x"}])
    io.write_skipped(tmp_path / "s.csv", ("path", "reason"), [("=1.wav", "@x")])
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["'=a", "b"], ["'=1", "-1"], ["x", "-2"]]
    with (tmp_path / "s.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1] == ["'=1.wav", "'@x"]


def test_a_list_of_skipped_files_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [("=1.wav", "@x"), ("a, b.wav", "a, b.wav: is empty.")]
    io.write_skipped(tmp_path / "s.csv", ("path", "reason"), rows)
    assert io.read_skipped(tmp_path / "s.csv") == (rows[0], ("a, b.wav", "is empty."))
    assert io.read_skipped(tmp_path / "none.csv") == ()


def test_a_skipped_file_is_one_line_with_its_path_once_and_each_remedy_is_there_once() -> None:
    install = "pip install 'patchifier[formats]'"
    skipped = [(f"/{n}.m4a", f"/{n}.m4a: an unknown\nformat: {install}") for n in range(3)]
    assert io.skipped_lines([*skipped, ("x.wav", "is empty.")]) == [
        "skipped /0.m4a: an unknown format",
        "skipped /1.m4a: an unknown format",
        "skipped /2.m4a: an unknown format",
        "skipped x.wav: is empty.",
        f"to read 3 of them: {install}",
    ]


def test_a_sentence_with_a_remedy_and_the_noise_of_a_decoder_are_no_part_of_the_line() -> None:
    install = "pip install 'patchifier[formats]', in a clone '.[formats]'"
    skipped = [
        ("a.ogg", f"a.ogg: only 4.3 of its 4.6 s can be read by x. To read it: {install}."),
        ("b.mp3", f"b.mp3: not audio. For m4a: {install}. Its decoder says: Note: Illegal: pip"),
        ("c.mp3", "c.mp3: not an audio file: it is text. Its decoder says: Note: resync"),
    ]
    assert io.skipped_lines(skipped) == [
        "skipped a.ogg: only 4.3 of its 4.6 s can be read by x.",
        "skipped b.mp3: not audio.",
        "skipped c.mp3: not an audio file: it is text.",
        f"to read 2 of them: {install}",
    ]


def test_an_array_on_a_full_disk_fails_with_the_number_of_the_error(tmp_path: Path) -> None:
    script = (
        "import resource, sys; import numpy as np; from pathlib import Path; "
        "from patchifier.io import save_array; "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: save_array(Path(sys.argv[1]), np.zeros(100_000))\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    path = tmp_path / "numbers.npy"
    shown = subprocess.check_output([sys.executable, "-c", script, path], text=True)
    assert shown.split() == [str(errno.EFBIG), str(path)]
    assert not list(tmp_path.iterdir())

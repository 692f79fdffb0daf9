"""Is a published data set complete? What is missing, empty or broken is named."""

import dataclasses
import hashlib
import json
import os

import pytest

from patchifier import cli, datasets
from patchifier.cli.data import check_text
from patchifier.config import RequestError
from patchifier.datasets.check import check, examine
from patchifier.datasets.sheet import Remote, Variant
from tests import published


@pytest.fixture(scope="module")
def gtzan_root(tmp_path_factory):
    return published.gtzan(tmp_path_factory.mktemp("check") / "gtzan", seconds=0.05)


@pytest.fixture
def gtzan(gtzan_root, tmp_path):
    return published.twin(gtzan_root, tmp_path / "gtzan")


@pytest.fixture
def mtat(tmp_path):
    return published.mtat(tmp_path / "mtat", seconds=0.05)


@pytest.fixture
def small_mtat():
    """The sheet with the counts of the small tree, and without checksums."""
    counts = {"all": {"": 51}, "tags50": {"train": 36, "valid": 5, "test": 10}}
    variants = {name: Variant("", known) for name, known in counts.items()}
    return dataclasses.replace(datasets.find_sheet("mtat")[0], remotes=(), variants=variants)


def says(report, *words):
    """Whether one line of the report has these words."""
    return any(all(word in line for word in words) for line in check_text(report).splitlines())


def test_a_whole_tree_is_complete(gtzan_root):
    report = check("gtzan", gtzan_root)
    assert report.complete
    assert report.files == 1000
    files = [path for path in gtzan_root.rglob("*.wav") if not path.name.startswith(".")]
    assert report.size_b == sum(path.stat().st_size for path in files)
    names = ("variant", "split", "published", "listed", "usable")
    assert [tuple(getattr(split, name) for name in names) for split in report.splits] == [
        ("fault-filtered", "train", 443, 443, 443),
        ("fault-filtered", "valid", 197, 197, 197),
        ("fault-filtered", "test", 290, 290, 290),
        ("folds", "", 1000, 1000, 1000),
    ]
    assert (report.missing, report.empty, report.corrupt, report.excused) == ((), (), {}, {})


def test_a_missing_file_is_named_and_what_the_splits_lose(gtzan):
    (gtzan / "genres/rock/rock.00000.wav").unlink()
    report = check("gtzan", gtzan)
    assert not report.complete
    assert report.missing == ("genres/rock/rock.00000.wav",)
    lost = {split.variant: split.lost for split in report.splits if split.lost}
    assert lost == dict.fromkeys(("fault-filtered", "folds"), ("rock.00000",))
    assert says(report, "genres/rock/rock.00000.wav")
    assert "NOT complete" in check_text(report).splitlines()[0]
    facts = cli.data.check("gtzan", root=str(gtzan)).results
    assert json.loads(json.dumps(facts))["missing"] == list(report.missing)
    assert facts["complete"] is False


def test_an_empty_and_a_broken_file_are_told_apart(gtzan):
    published.replace(gtzan / "genres/rock/rock.00000.wav", b"")
    published.replace(gtzan / "genres/rock/rock.00001.wav", b"RIFF but no more" * 9)
    report = check("gtzan", gtzan)
    assert not report.complete
    assert report.empty == ("genres/rock/rock.00000.wav",)
    assert list(report.corrupt) == ["genres/rock/rock.00001.wav"]
    assert report.missing == ()


@pytest.mark.parametrize("harm", ["broken", "absent", "empty"])
def test_a_file_known_to_be_bad_does_not_make_it_incomplete(gtzan, harm):
    path = gtzan / "genres/jazz/jazz.00054.wav"
    path.unlink()
    if harm != "absent":
        path.write_bytes(b"not a RIFF header" * 64 if harm == "broken" else b"")
    report = check("gtzan", gtzan)
    assert report.complete
    assert list(report.excused) == ["genres/jazz/jazz.00054.wav"]
    train = next(split for split in report.splits if split.split == "train")
    assert (train.published, train.usable, train.lost) == (443, 442, ("jazz.00054",))
    assert says(report, "442", "443", "jazz.00054")


def test_the_excuse_holds_for_au_and_for_nothing_else():
    facts = datasets.find_sheet("gtzan")[0]
    assert facts.excuse("/data/genres/jazz/jazz.00054.au")
    assert facts.excuse("jazz/jazz.00054.wav")
    assert not facts.excuse("/data/genres/jazz/jazz.00055.wav")
    assert not facts.excuse("/data/genres/notjazz/jazz.00054.wav")


def test_a_truncated_file_is_found_by_decoding(gtzan):
    path = gtzan / "genres/rock/rock.00002.wav"
    published.replace(path, path.read_bytes()[:-1000])
    assert check("gtzan", gtzan).complete  # its header is sound
    report = check("gtzan", gtzan, thorough=True)
    assert not report.complete
    assert "truncated" in report.corrupt["genres/rock/rock.00002.wav"]


def test_one_variant_alone(gtzan):
    removed = "classical.00042"  # not in the fault-filtered split
    (gtzan / f"genres/classical/{removed}.wav").unlink()
    assert check("gtzan:fault-filtered", gtzan).complete
    assert not check("gtzan:folds", gtzan).complete
    assert not check("gtzan", gtzan).complete


def test_tables_that_are_cut_short_are_not_complete(mtat, small_mtat):
    assert check(small_mtat, mtat).complete
    for name in ("clip_info_final.csv", "annotations_final.csv"):
        lines = (mtat / name).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if "f/band_f" not in line]
        (mtat / name).write_text("".join(kept), encoding="utf-8")
    report = check(small_mtat, mtat)
    assert not report.complete
    assert (report.missing, report.corrupt) == ((), {})
    assert says(report, "NOT as published")


def test_a_split_that_vanished_is_counted_as_nothing(mtat, small_mtat):
    counts = {"train": 23, "valid": 2, "test": 7, "extra": 3}
    sheet = dataclasses.replace(small_mtat, variants={"tags50-tagged": Variant("", counts)})
    extra = next(split for split in check(sheet, mtat).splits if split.split == "extra")
    assert (extra.published, extra.listed, extra.usable, extra.as_published) == (3, 0, 0, False)


def test_mtat_lists_the_three_empty_files_apart(mtat, small_mtat):
    report = check(small_mtat, mtat)
    assert report.complete
    assert len(report.known_bad) == 3
    assert report.empty == ()
    assert says(report, published.NORINE[-1])


def test_tables_that_cannot_be_read_are_said(mtat):
    (mtat / "annotations_final.csv").unlink()
    report = check("mtat", mtat)
    assert not report.complete
    assert "annotations_final.csv is not there" in report.unreadable
    assert says(report, "annotations_final.csv is not there")


def test_checksums_of_downloads_that_lie_in_the_root(gtzan):
    sha256 = hashlib.sha256(b"content").hexdigest()
    contents = {"good": b"content", "bad": b"changed", "long": b"content and more", "other": b"x"}
    for name, content in contents.items():
        (gtzan / name).write_bytes(content)
    remotes = (
        Remote("good", (), sha256, 7),
        Remote("bad", (), sha256),
        Remote("long", (), "", 7),
        Remote("other"),
        Remote("absent", (), sha256),
    )
    sheet = dataclasses.replace(datasets.find_sheet("gtzan")[0], remotes=remotes)
    report = check(sheet, gtzan)
    states = {"good": "ok", "bad": "differs", "long": "differs", "other": "unknown"}
    assert {file.name: file.state for file in report.downloads} == {**states, "absent": "absent"}
    assert not report.complete
    (gtzan / "bad").write_bytes(b"content")
    (gtzan / "long").unlink()
    assert check(sheet, gtzan).complete  # what is absent has been unpacked


def test_long_lists_are_cut_in_the_text_and_whole_in_the_facts(gtzan):
    for number in range(40):
        (gtzan / f"genres/rock/rock.{number:05d}.wav").unlink()
    report = check("gtzan:folds", gtzan)
    assert len(report.missing) == 40
    assert len(check_text(report).splitlines()) < 30
    assert says(report, "and 30 more")


def test_progress_is_told_to_the_end(gtzan_root):
    seen = []
    check("gtzan:folds", gtzan_root, progress=lambda done, total, note: seen.append((done, total)))
    assert seen == [(done, 1000) for done in range(1, 1001)]


def test_nothing_is_changed(mtat):
    before = published.tree(mtat)
    check("mtat", mtat, thorough=True)
    assert published.tree(mtat) == before


@pytest.mark.parametrize(
    ("source", "root", "reason"),
    [
        ("gtzam", "", r"Did you mean 'gtzan'"),
        ("gtzan:fold", "", r"no variant 'fold'"),
        ("gtzan", "nowhere", r"is no folder"),
    ],
)
def test_a_wrong_request_is_refused(source, root, reason, tmp_path):
    with pytest.raises(RequestError, match=reason):
        check(source, tmp_path / root)


@pytest.mark.parametrize("name", datasets.PUBLISHED)
def test_an_empty_root_is_not_complete_and_the_text_says_what_to_do(name, tmp_path):
    report = check(name, tmp_path)
    assert not report.complete
    assert report.unreadable
    last = check_text(report).splitlines()[-1]
    sheet, _ = datasets.find_sheet(name)
    fetched = f"'patchifier fetch {name} --root {tmp_path}'" in last
    assert fetched == bool(sheet.remotes)
    assert sheet.steps in last
    assert "patchifier check" not in check_text(report)


@pytest.mark.parametrize("name", datasets.PUBLISHED)
def test_a_missing_root_is_refused_with_what_to_do(name, tmp_path):
    root = tmp_path / "nowhere"
    with pytest.raises(RequestError) as caught:
        check(name, root)
    said = str(caught.value)
    assert said.endswith(datasets.find_sheet(name)[0].how_to_get(root))
    assert "patchifier check" not in said


def test_a_complete_root_gives_no_advice(small_mtat, mtat):
    assert check(small_mtat, mtat).how_to_get == ""


def test_examine_knows_what_is_no_sound(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "text.mp3").write_text("hello " * 100, encoding="utf-8")
    published.write(tmp_path / "none.wav", published.sound(440, seconds=0, rate=16_000), 16_000)
    published.write(tmp_path / "good.mp3", published.sound(440, seconds=0.3, rate=16_000), 16_000)
    assert examine(str(tmp_path / "good.mp3"), thorough=True) == ""
    assert examine(str(tmp_path / "gone.wav")) == "missing"
    assert examine(os.fsdecode(b"a\xff.wav")) == "its name is not UTF-8: rename it."
    assert examine(str(tmp_path / "none.wav")) == "holds no audio"
    assert examine(str(tmp_path / "text.mp3"))
    assert examine(str(tmp_path / "folder.wav"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_examine_refuses_a_pipe_before_it_opens_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    reason = "is a pipe or a device, expected a regular file."
    assert examine(str(tmp_path / "pipe.wav")) == examine("/dev/zero") == reason

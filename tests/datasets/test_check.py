"""Is a published data set complete? What is missing, empty or broken is named; what is known to be bad is nobody's fault."""

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
    facts = datasets.find_sheet("mtat")[0]
    counts = {"all": {"": 51}, "tags50": {"train": 36, "valid": 5, "test": 10}}
    return dataclasses.replace(
        facts, remotes=(), variants={name: Variant("", known) for name, known in counts.items()}
    )


def test_a_whole_tree_is_complete(gtzan_root):
    report = check("gtzan", gtzan_root)
    assert report.complete
    assert report.files == 1000
    assert report.size_b == sum(
        path.stat().st_size for path in gtzan_root.rglob("*.wav") if not path.name.startswith(".")
    )
    assert [
        (split.variant, split.split, split.published, split.listed, split.usable)
        for split in report.splits
    ] == [
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
    side = next(
        clip.split
        for clip in datasets.load("gtzan", gtzan, partial=True).clips
        if clip.id == "rock.00001"
    )
    lost = {(split.variant, split.split): split.lost for split in report.splits if split.lost}
    assert lost[("folds", "")] == ("rock.00000",)
    assert [names for (variant, _), names in lost.items() if variant == "fault-filtered"] == [
        ("rock.00000",)
    ]
    assert side in datasets.SPLITS
    assert any("genres/rock/rock.00000.wav" in line for line in check_text(report).splitlines())
    assert "NOT complete" in check_text(report).splitlines()[0]


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
    assert any(
        "442" in line and "443" in line and "jazz.00054" in line
        for line in check_text(report).splitlines()
    )


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
    assert any("NOT as published" in line for line in check_text(report).splitlines())


def test_a_split_that_vanished_is_counted_as_nothing(mtat, small_mtat):
    sheet = dataclasses.replace(
        small_mtat,
        variants={"tags50-tagged": Variant("", {"train": 23, "valid": 2, "test": 7, "extra": 3})},
    )
    extra = next(split for split in check(sheet, mtat).splits if split.split == "extra")
    assert (extra.published, extra.listed, extra.usable, extra.as_published) == (3, 0, 0, False)


def test_mtat_lists_the_three_empty_files_apart(mtat, small_mtat):
    report = check(small_mtat, mtat)
    assert report.complete
    assert len(report.known_bad) == 3
    assert report.empty == ()
    assert any(published.NORINE[-1] in line for line in check_text(report).splitlines())


def test_tables_that_cannot_be_read_are_said(mtat):
    (mtat / "annotations_final.csv").unlink()
    report = check("mtat", mtat)
    assert not report.complete
    assert "annotations_final.csv is not there" in report.unreadable
    assert any(
        "annotations_final.csv is not there" in line for line in check_text(report).splitlines()
    )


def test_checksums_of_downloads_that_lie_in_the_root(gtzan, tmp_path):
    good, bad, long, other = (f"{name}.bin" for name in ("good", "bad", "long", "other"))
    sha256 = hashlib.sha256(b"content").hexdigest()
    for name, content in [
        (good, b"content"),
        (bad, b"changed"),
        (long, b"content and more"),
        (other, b"whatever"),
    ]:
        (gtzan / name).write_bytes(content)
    remotes = (
        Remote(good, (), sha256, 7),
        Remote(bad, (), sha256),
        Remote(long, (), "", 7),
        Remote(other),
        Remote("absent.bin", (), sha256),
    )
    sheet = dataclasses.replace(datasets.find_sheet("gtzan")[0], remotes=remotes)
    report = check(sheet, gtzan)
    assert {file.name: file.state for file in report.downloads} == {
        good: "ok",
        bad: "differs",
        long: "differs",
        other: "unknown",
        "absent.bin": "absent",
    }
    assert not report.complete
    (gtzan / bad).write_bytes(b"content")
    (gtzan / long).unlink()
    assert check(sheet, gtzan).complete  # what is absent has been unpacked


def test_the_facts_are_plain_values(gtzan):
    (gtzan / "genres/rock/rock.00000.wav").unlink()
    facts = cli.data.check("gtzan", root=str(gtzan)).results
    assert json.loads(json.dumps(facts))["missing"] == ["genres/rock/rock.00000.wav"]
    assert facts["complete"] is False


def test_long_lists_are_cut_in_the_text_and_whole_in_the_facts(gtzan):
    for number in range(40):
        (gtzan / f"genres/rock/rock.{number:05d}.wav").unlink()
    report = check("gtzan:folds", gtzan)
    assert len(report.missing) == 40
    assert len(check_text(report).splitlines()) < 30
    assert any("and 30 more" in line for line in check_text(report).splitlines())


def test_progress_is_told_to_the_end(gtzan_root):
    seen = []
    check("gtzan:folds", gtzan_root, progress=lambda done, total, note: seen.append((done, total)))
    assert seen == [(done, 1000) for done in range(1, 1001)]


def test_nothing_is_changed(mtat):
    before = published.tree(mtat)
    check("mtat", mtat, thorough=True)
    assert published.tree(mtat) == before


def test_a_wrong_request_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"Did you mean 'gtzan'"):
        check("gtzam", tmp_path)
    with pytest.raises(RequestError, match=r"no variant 'fold'"):
        check("gtzan:fold", tmp_path)
    with pytest.raises(RequestError, match=r"is no folder"):
        check("gtzan", tmp_path / "nowhere")


def test_an_empty_root_is_not_complete(tmp_path):
    for name in datasets.PUBLISHED:
        report = check(name, tmp_path)
        assert not report.complete
        assert report.unreadable


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

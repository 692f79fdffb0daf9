"""The published data sets: golden facts, every known trap, and what all sheets promise."""

import hashlib
import importlib
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from patchifier import audio, cache, datasets, filters, spectrogram, tasks
from patchifier.config import RequestError, SpectrogramConfig
from patchifier.datasets import emomusic, giantsteps, gtzan, mtat, sheet
from patchifier.datasets.splits import partition
from tests import published

BUILDERS = {
    "mtat": published.mtat,
    "gtzan": published.gtzan,
    "gtzan-beats": published.gtzan_beats,
    "emomusic": published.emomusic,
    "giantsteps-key": published.giantsteps,
    "nsynth": published.nsynth,
    "mtg-jamendo": published.jamendo,
}
NAMES = sorted(BUILDERS)
PINNED = "19 1010 1012 1025 1034".split()  # of the small tree, computed apart from the package
FOLD_0_BLUES = "10 17 22 45 47 54 64 67 89 99".split()
VARIANTS = [
    f"{name}:{variant}" for name in NAMES for variant in datasets.find_sheet(name)[0].variants
]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A tree of each data set, with 0.1 s of sound in each file. Read them, never write to them."""
    folder = tmp_path_factory.mktemp("published")
    return {name: build(folder / name, seconds=0.1) for name, build in BUILDERS.items()}


@pytest.fixture
def tree(roots, tmp_path):
    """Give a copy of a data set's tree, to spoil."""
    return lambda name: published.twin(roots[name], tmp_path / name)


def sides(dataset):
    return Counter(clip.split or "" for clip in dataset.clips)


def by_id(dataset):
    return {clip.id: clip for clip in dataset.clips}


def edit(path, change):
    published.replace(path, change(path.read_text(encoding="utf-8")).encode())


@pytest.fixture
def load(roots):
    """Load a data set or a variant of it."""
    return lambda source: datasets.load(source, roots[source.split(":")[0]])


@pytest.fixture
def spoil(tree):
    """Change a table of a data set, and see that loading it is refused with a reason."""

    def run(name, table, change, says):
        root = tree(name)
        edit(root / table, change)
        with pytest.raises(RequestError, match=says):
            datasets.load(name, root)

    return run


# --- what every sheet promises ---


def test_the_table_of_names_and_the_sheets_agree():
    assert sorted(datasets.PUBLISHED) == NAMES
    for name in NAMES:
        assert datasets.find_sheet(name)[0].name == name


@pytest.mark.parametrize("source", VARIANTS)
def test_every_variant_loads_and_is_well_formed(load, source):
    name, variant = source.split(":")
    dataset, facts = load(source), datasets.find_sheet(name)[0]
    assert dataset.name == (name if variant == facts.default else source)
    assert len(by_id(dataset)) == len(dataset.clips)
    for clip in dataset.clips:
        assert Path(clip.path).is_file()
        assert not Path(clip.path).name.startswith(".")
    assert set(facts.variants[variant].counts) in (set(), set(sides(dataset)))
    targets = [clip.target for clip in dataset.clips]
    if dataset.task is None:
        assert set(targets) == {None}
    elif dataset.task.kind == "per-frame":
        assert all(0 <= start <= end for target in targets for start, end, _ in target)
    else:
        assert len(tasks.encode_targets(dataset.task, targets)) == len(targets)
    if variant == facts.default:
        assert load(name) == dataset


@pytest.mark.parametrize("name", NAMES)
def test_the_data_sheet_says_what_a_person_must_know(name):
    facts = datasets.find_sheet(name)[0]
    text = importlib.import_module(f"patchifier.datasets.{datasets.PUBLISHED[name]}").__doc__
    for word in ("size ", "audio ", "origin ", "licence ", "citation ", "files ", "Traps"):
        assert word in text, word
    assert facts.home.startswith("http")
    assert all((facts.title, facts.licence, facts.citation, facts.steps))
    assert all(variant.what for variant in facts.variants.values())


@pytest.mark.parametrize("name", NAMES)
def test_addresses_and_archives_are_consistent(name):
    facts = datasets.find_sheet(name)[0]
    names = [remote.name for remote in facts.remotes]
    assert len(set(names)) == len(names)
    for remote in facts.remotes:
        assert remote.urls
        assert all(url.startswith(("http://", "https://")) for url in remote.urls)
        assert len(remote.sha256) in (0, 64)
        assert not remote.sha256 or int(remote.sha256, 16)
    for archive in facts.archives:
        assert set(archive.parts or (archive.name,)) <= set(names)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_empty_file_is_an_error_that_names_it_and_the_counts(tree, name):
    root = tree(name)
    clips = datasets.load(name, root).clips
    path, counts = Path(clips[5].path), f"{len(clips) - 1} of {len(clips)} clips"
    for harm in (lambda: published.replace(path, b""), path.unlink):
        harm()
        with pytest.raises(RequestError) as error:
            datasets.load(name, root)
        for text in (str(path), counts, f"patchifier check {name}"):
            assert text in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_what_is_there_and_the_rest_is_said(tree, name, caplog):
    root = tree(name)
    clips = datasets.load(name, root).clips
    for clip in clips[:2]:
        Path(clip.path).unlink()
    with caplog.at_level(logging.WARNING):
        part = datasets.load(name, root, partial=True)
    assert part.clips == clips[2:]
    assert f"{len(clips) - 2} of {len(clips)} clips used" in caplog.text
    assert all(Path(clip.path).name.split(".low")[0] in caplog.text for clip in clips[:2])


def test_many_missing_files_are_named_in_part_and_a_part_of_nothing_is_an_error(tree):
    root = tree("emomusic")
    shutil.rmtree(root / "clips_45seconds")
    with pytest.raises(RequestError, match=r"0 of 40 clips"):
        datasets.load("emomusic", root, partial=True)
    with pytest.raises(RequestError, match=r"40 files are missing.*2\.mp3.*3\.mp3.*4\.mp3; \.\.\."):
        datasets.load("emomusic", root)


def test_requests_without_sense_are_refused_with_what_to_do(audio_folder, tmp_path):
    load, find = datasets.load, datasets.find_sheet
    for says, call in (
        (r"--root DIR.*patchifier check gtzan --root DIR", lambda: load("gtzan")),
        (r"nowhere is no folder", lambda: load("gtzan", tmp_path / "nowhere")),
        (r"paper16k.*tags50-tagged.*Did you mean 'tags50'", lambda: load("mtat:tag50", "/tmp")),
        ("no variant ''", lambda: find("mtat:")),
        (r"Did you mean 'gtzan'", lambda: find("gtzen")),
        (r"Did you mean 'emomusic'", lambda: load("emomusik")),
        (r"no published data set", lambda: load(str(audio_folder), audio_folder)),
        (r"no published data set", lambda: load(str(audio_folder), partial=True)),
    ):
        with pytest.raises(RequestError, match=says):
            call()


def test_a_folder_of_that_name_is_not_taken_for_the_data_set(audio_folder, tmp_path, monkeypatch):
    shutil.copytree(audio_folder, tmp_path / "gtzan")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"write \./gtzan"):
        datasets.load("gtzan")
    assert len(datasets.load("./gtzan").clips) == 6
    assert len(datasets.load(Path("gtzan")).clips) == 6


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gtzan"])
def test_a_missing_table_is_named(tree, name):
    root = tree(name)
    for suffix in ("csv", "tsv", "json*", "txt"):
        for path in root.rglob(f"*.{suffix}"):
            path.unlink()
    with pytest.raises(RequestError, match=r"is not there"):
        datasets.load(name, root)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_is_refused_with_what_was_expected(tmp_path, name):
    with pytest.raises(RequestError, match=r"expected"):
        datasets.load(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_loading_changes_nothing_on_disk(roots, name):
    before = {path: path.stat().st_mtime_ns for path in roots[name].rglob("*")}
    datasets.load(name, roots[name])
    assert {path: path.stat().st_mtime_ns for path in roots[name].rglob("*")} == before


@pytest.mark.parametrize("source", ["mtat:tags50", "nsynth", "mtg-jamendo"])
def test_a_group_never_stands_on_two_sides_of_a_split_that_keeps_groups_apart(load, source):
    sides_of = {(clip.group, clip.split) for clip in load(source).clips}
    assert len({group for group, _ in sides_of}) == len(sides_of)


# --- MagnaTagATune ---


@pytest.fixture(scope="module")
def full_mtat(tmp_path_factory):
    """Every usable clip of tables of the published size, read once."""
    root = published.mtat_full_tables(tmp_path_factory.mktemp("mtat_full"))
    return list(mtat._clips(root))


def folder_of(clip):
    return Path(clip.path).parent.name


@pytest.fixture
def read_full(full_mtat, monkeypatch):
    monkeypatch.setattr(mtat, "_clips", lambda root: iter(full_mtat))
    return lambda variant: mtat.read(Path(), variant)


@pytest.mark.parametrize(
    ("variant", "counts"),
    [
        ("paper16k", {"": 16_000}),
        ("top50-trainval", {"": 16_776}),
        ("train", {"": 18_706}),
        ("all", {"": 25_860}),
        ("tags50", {"train": 18_706, "valid": 1_825, "test": 5_329}),
        ("tags50-tagged", {"train": 15_247, "valid": 1_529, "test": 4_332}),
        ("tags188", {"train": 18_706, "valid": 1_825, "test": 5_329}),
    ],
)
def test_mtat_counts_of_every_variant_from_tables_of_all_folders(read_full, variant, counts):
    assert sides(read_full(variant)) == counts
    assert mtat.SHEET.variants[variant].counts == counts


def test_mtat_paper16k_is_the_stated_hash_without_the_test_folders(read_full, full_mtat):
    chosen = read_full("paper16k").clips
    assert {folder_of(clip) for clip in chosen} == set("0123456789abc")
    candidates = [clip.id for clip in full_mtat if folder_of(clip) in "0123456789abc"]
    assert len(candidates) == 20_531
    candidates.sort(key=lambda number: hashlib.sha256(f"paper16k/{number}".encode()).hexdigest())
    assert {clip.id for clip in chosen} == set(candidates[:16_000])


def test_mtat_paper16k_is_pinned(roots, monkeypatch):
    monkeypatch.setattr(mtat, "PAPER_CLIPS", 5)
    assert [clip.id for clip in mtat.read(roots["mtat"], "paper16k").clips] == PINNED


def test_mtat_paper16k_looks_at_no_label(tree):
    root = tree("mtat")
    before = mtat.read(root, "paper16k")
    edit(root / "annotations_final.csv", lambda text: text.replace('"1"', '"0"'))
    assert mtat.read(root, "paper16k") == before


@pytest.mark.parametrize("variant", ["paper16k", "top50-trainval", "train", "all"])
def test_mtat_pre_training_has_neither_targets_nor_a_split(roots, variant):
    dataset = mtat.read(roots["mtat"], variant)
    assert dataset.task is None
    assert {(clip.target, clip.split, clip.fold) for clip in dataset.clips} == {(None, None, None)}
    assert all(clip.group for clip in dataset.clips)


def test_mtat_top_50_list_is_the_published_one_in_its_order():
    assert " ".join(tag.replace(" ", "_") for tag in mtat.TAGS50) == (
        "guitar classical slow techno strings drums electronic rock fast piano ambient beat violin vocal synth female indian opera male singing vocals "
        "no_vocals harpsichord loud quiet flute woman male_vocal no_vocal pop soft sitar solo man classic choir voice new_age dance male_voice "
        "female_vocal beats harp cello no_voice weird country metal female_voice choral"
    )
    assert len(mtat.TAGS188) == len(set(mtat.TAGS188)) == 188
    assert mtat.TAGS188[:3] == ("no voice", "singer", "duet")


def test_mtat_tasks_ask_for_the_tags_in_order(roots):
    assert mtat.read(roots["mtat"], "tags50").task == tasks.Task("many-of", mtat.TAGS50)
    assert mtat.read(roots["mtat"], "tags188").task == tasks.Task("many-of", mtat.TAGS188)


def test_trap_mtat_tables_are_read_quoted_and_unquoted(tmp_path):
    root = published.mtat(tmp_path / "mtat", seconds=0.05)
    first = [mtat.read(root, variant) for variant in mtat.SHEET.variants]
    published.mtat(root, seconds=0.05, quoted=False)
    assert '"' not in (root / "clip_info_final.csv").read_text(encoding="utf-8")
    assert [mtat.read(root, variant) for variant in mtat.SHEET.variants] == first


@pytest.mark.parametrize("folder", ["", "mp3", "audio"])
def test_trap_mtat_folders_may_lie_in_three_places(tmp_path, folder):
    root = published.mtat(tmp_path / "Müsik [空] 1", seconds=0.05, folder=folder)
    clips = datasets.load("mtat:all", str(root)).clips
    assert {Path(clip.path).parents[1] for clip in clips} == {root / folder}
    assert len(clips) == 51


def test_trap_mtat_empty_files_and_rows_without_audio_are_no_clips(roots, load):
    assert (roots["mtat"] / published.NORINE[-1]).stat().st_size == 0
    assert not {"35644", "215"} & set(by_id(load("mtat:all")))
    assert len(mtat.KNOWN_BAD) == 3


def test_trap_mtat_untagged_clips_are_negatives_or_dropped_as_the_variant_says(load):
    kept, tagged, every = (
        {clip.id: clip.target for clip in load(f"mtat:{variant}").clips}
        for variant in ("tags50", "tags50-tagged", "tags188")
    )
    assert kept["19"] == []
    assert "19" not in tagged
    assert tagged["2"] == kept["2"] == ["classical", "strings", "violin", "opera"]
    assert set(kept) - set(tagged) == {number for number, tags in kept.items() if not tags}
    rare = next(number for number, tags in every.items() if tags == ["electro"])
    assert kept[rare] == []


def test_trap_mtat_a_group_is_an_album_and_no_album_spans_two_folders(full_mtat):
    folders = {}
    for clip in full_mtat:
        assert folders.setdefault(clip.group, folder_of(clip)) == folder_of(clip)
    letters = "".join(mtat.SPLIT_OF[folder][0] for folder in "0123456789abcdef")
    assert letters == 12 * "t" + "v" + 3 * "t"
    splits = ["train", "train", "valid", "test", "test"]
    assert [mtat.SPLIT_OF[folder] for folder in "0bcdf"] == splits


def test_trap_mtat_both_clips_of_one_song_are_one_group(load):
    clips = by_id(load("mtat:all"))
    assert clips["14"].group == clips["19"].group == "lvxnova-lvxnova"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda text: text[: len(text) - 300],
            r"annotations_final.csv, row \d+: has \d+ fields, expected 190",
        ),
        (
            lambda text: text.replace("f/american_bach", "e/american_bach"),
            r"for clip 2, expected 'f/american_bach",
        ),
    ],
)
def test_trap_mtat_tables_cut_short_or_contradicting_are_refused(spoil, change, says):
    spoil("mtat", "annotations_final.csv", change, says)


def test_mtat_a_path_outside_the_folders_is_refused(tree):
    root = tree("mtat")
    for name in ("annotations_final.csv", "clip_info_final.csv"):
        edit(root / name, lambda text: text.replace("f/american_bach", "../american_bach"))
    with pytest.raises(RequestError, match=r"expected one that starts with a folder 0 to f"):
        datasets.load("mtat", root)


def test_mtat_a_table_in_another_encoding_is_refused(tree):
    path = tree("mtat") / "clip_info_final.csv"
    published.replace(path, path.read_bytes().replace(b"Phantasm", b"Ph\xe4ntasm"))
    with pytest.raises(RequestError, match=r"UTF-8"):
        datasets.load("mtat", path.parent)


# --- GTZAN ---


@pytest.fixture(scope="module")
def some_tracks():
    """One or none of each genre, and one more of jazz."""
    rows = published.rows_of("gtzan_fault_filtered.csv")
    firsts = [row["track_id"] for row in rows if row["track_id"].endswith("000")]
    return ["jazz.00055", *firsts]


@pytest.mark.parametrize("suffix", [".wav", ".au"])
@pytest.mark.parametrize("layout", published.GTZAN_LAYOUTS)
def test_trap_gtzan_layouts_and_suffixes(tmp_path, some_tracks, layout, suffix):
    root = published.gtzan(tmp_path, layout=layout, suffix=suffix, seconds=0.05, tracks=some_tracks)
    clips = datasets.load("gtzan", root, partial=True).clips
    paths = {clip.id: Path(clip.path) for clip in clips}
    assert set(paths) == {*some_tracks, "jazz.00054"}  # the known-bad one stays listed
    assert {path.parents[1] for path in paths.values()} == {root / layout}
    del paths["jazz.00054"]
    assert {path.suffix for path in paths.values()} == {suffix}


def test_gtzan_counts_by_genre(load):
    clips = load("gtzan").clips
    counts = Counter((clip.split, clip.target) for clip in clips)
    expected = {
        "train": [46, 48, 45, 42, 47, 43, 44, 41, 43, 44],
        "valid": [23, 20, 23, 22, 18, 17, 20, 13, 17, 24],
        "test": [31, 31, 30, 29, 27, 27, 27, 30, 26, 32],
    }
    for split, row in expected.items():
        assert [counts.pop((split, genre)) for genre in gtzan.GENRES] == row
    assert not counts


def test_gtzan_the_majority_class_is_right_for_32_of_290(load):
    dataset = load("gtzan")
    tested = [clip.target for clip in dataset.clips if clip.split == "test"]
    targets = tasks.encode_targets(dataset.task, tested)
    always_rock = np.tile(np.eye(10)[gtzan.GENRES.index("rock")], (len(targets), 1))
    assert tasks.scores(dataset.task, targets, always_rock)["accuracy"] == pytest.approx(32 / 290)


def test_gtzan_named_tracks_are_where_the_published_lists_have_them(load):
    clips = by_id(load("gtzan"))
    names = ("blues.00000", "blues.00012", "blues.00029", "jazz.00054")
    assert [clips[name].split for name in names] == ["valid", "test", "train", "train"]
    assert "classical.00042" not in clips


def test_trap_gtzan_one_of_each_pair_of_identical_files_is_out(load):
    kept = set(by_id(load("gtzan")))
    pairs = [("disco", 98, 99), ("hiphop", 39, 45), ("hiphop", 76, 78), ("reggae", 81, 82)]
    pairs += [("pop", 54, 60), ("pop", 67, 71), ("metal", 34, 94)]
    pairs += [("metal", number, number + 21) for number in range(40, 46)]
    for genre, one, other in pairs:
        assert not {f"{genre}.{one:05d}", f"{genre}.{other:05d}"} <= kept
    assert not {"rock.00016", "metal.00058"} <= kept


def test_gtzan_folds_are_stratified_and_always_the_same(load):
    dataset = load("gtzan:folds")
    counts = Counter((clip.fold, clip.target) for clip in dataset.clips)
    assert counts == {(fold, genre): 10 for fold in range(10) for genre in gtzan.GENRES}
    assert {clip.split for clip in dataset.clips} == {None}
    blues = [clip.id[-2:] for clip in dataset.clips if clip.fold == 0 and clip.target == "blues"]
    assert blues == FOLD_0_BLUES
    assert Counter(partition(dataset.clips)) == {"train": 800, "valid": 100, "test": 100}


def test_gtzan_folds_warn_that_artists_are_on_both_sides():
    assert "no artist filter" in gtzan.__doc__
    assert "no artist filter" in gtzan.SHEET.variants["folds"].what


@pytest.mark.parametrize("harm", ["broken", "absent", "empty"])
def test_trap_gtzan_jazz_54_may_be_broken_or_absent(tree, harm):
    root = tree("gtzan")
    path = root / "genres/jazz/jazz.00054.wav"
    path.unlink()
    if harm != "absent":
        published.replace(path, b"not a RIFF header" if harm == "broken" else b"")
    dataset = datasets.load("gtzan", root)
    assert sides(dataset) == {"train": 443, "valid": 197, "test": 290}
    assert by_id(dataset)["jazz.00054"].split == "train"


def test_trap_gtzan_prepare_names_the_broken_one_and_goes_on(tmp_path):
    tracks = ["jazz.00054", "blues.00000", "blues.00012", "blues.00029"]
    root = published.gtzan(tmp_path / "gtzan", seconds=0.2, tracks=tracks, broken_jazz=True)
    dataset = datasets.load("gtzan", root, partial=True)
    prepared = cache.prepare(dataset, tmp_path / "cache", workers=1)
    assert [clip.id for clip, _ in prepared.skipped] == tracks[:1]
    assert [clip.id for clip in cache.Cache(tmp_path / "cache").clips] == tracks[1:]


def test_trap_gtzan_files_that_macos_left_are_passed_over(roots):
    junk = list(roots["gtzan"].rglob("._*"))
    assert len(junk) == 1000
    assert {path.stat().st_size for path in junk} == {211}
    assert len(datasets.load("gtzan:folds", roots["gtzan"]).clips) == 1000


def test_trap_gtzan_another_missing_file_is_not_excused(tree):
    root = tree("gtzan")
    (root / "genres/jazz/jazz.00055.wav").unlink()
    with pytest.raises(RequestError, match=r"999 of 1000 clips used, 1 files.*jazz.00055.wav"):
        datasets.load("gtzan:folds", root)


# --- EmoMusic ---


@pytest.fixture(scope="module")
def all_songs(tmp_path_factory):
    """All 744 songs, without sound."""
    root = published.emomusic(tmp_path_factory.mktemp("all"), songs=744, audible=False)
    return emomusic.read(root, "jukemir")


def test_emomusic_the_hash_rule_gives_the_published_split(all_songs):
    assert sides(all_songs) == {"train": 504, "valid": 115, "test": 125}
    packaged = {row["song_id"]: row["split"] for row in published.rows_of("emomusic_jukemir.csv")}
    assert {clip.id: clip.split for clip in all_songs.clips} == packaged
    assert len({clip.group for clip in all_songs.clips}) == 409


def test_trap_emomusic_artists_leak_into_the_test_set_and_59_clips_are_clean(all_songs):
    artists = {
        split: {clip.group for clip in all_songs.clips if clip.split == split}
        for split in datasets.SPLITS
    }
    test = [clip for clip in all_songs.clips if clip.split == "test"]
    assert sum(clip.group in artists["train"] for clip in test) == 53
    assert sum(clip.group in artists["valid"] for clip in test) == 13
    clean = [clip for clip in all_songs.clips if clip.subsets]
    assert len(clean) == 59
    assert {clip.subsets for clip in clean} == {("artist-clean",)}
    assert {clip.split for clip in clean} == {"test"}
    assert not {clip.group for clip in clean} & (artists["train"] | artists["valid"])
    assert not artists["train"] & artists["valid"]


def test_trap_emomusic_the_leak_by_name(load):
    clips = by_id(load("emomusic"))
    for number, split in (("3", "test"), ("4", "valid"), ("7", "valid")):
        clip = clips[number]
        assert clip.info["artist"] == "Kevin MacLeod"
        assert (clip.split, clip.subsets) == (split, ())


def test_emomusic_standardised_labels_and_the_ratings_themselves(load):
    clips = by_id(load("emomusic"))
    assert clips["2"].target == pytest.approx([-1.1948424462, -1.5732788720], abs=1e-9)
    assert clips["5"].target == pytest.approx([-0.2568980419, 0.2599478692], abs=1e-9)
    info = clips["1000"].info
    assert (info["arousal"], info["valence"]) == ("7.2222", "5.8889")
    assert (info["arousal_deviation"], info["valence_deviation"]) == ("1.0929", "2.0883")


def test_emomusic_predicting_the_development_mean_gives_the_published_r2():
    """From the moments of the published splits: those are all that R2 of a constant depends on."""
    train, train_deviation = np.array([[4.7727, 4.9963], [1.3925, 1.2621]])
    valid, valid_deviation = np.array([[4.6831, 4.8756], [1.3549, 1.2165]])
    together = (504 * train + 115 * valid) / 619
    assert together == pytest.approx(emomusic.MEAN, abs=1e-4)
    squares = 504 * (train_deviation**2 + (train - together) ** 2)
    squares += 115 * (valid_deviation**2 + (valid - together) ** 2)
    assert np.sqrt(squares / 619) == pytest.approx(emomusic.DEVIATION, abs=1e-3)
    drawn = np.random.default_rng(0).standard_normal((125, 2))
    ratings = [4.9370, 5.1655] + [1.3094, 1.1816] * (drawn - drawn.mean(0)) / drawn.std(0)
    targets = (ratings - emomusic.MEAN) / np.array(emomusic.DEVIATION)
    task = tasks.Task("numbers", ("arousal", "valence"))
    scores = tasks.scores(task, targets, np.zeros((125, 2)))
    assert scores["r2_arousal"] == pytest.approx(-0.019, abs=5e-4)
    assert scores["r2_valence"] == pytest.approx(-0.026, abs=5e-4)


TIMES_S = {"0.2": 20, "0.02": 2, "1.05": 65, "0.48": 48, "2": 120, "1.5": 110, "0": 0, "10.3": 630}


@pytest.mark.parametrize(("text", "seconds"), TIMES_S.items())
def test_trap_emomusic_times_lose_their_zeros(text, seconds):
    assert emomusic.seconds(text) == seconds


@pytest.mark.parametrize("text", ["0.6", "1.75", "x", "", "1.234", "-1.2", "1:20"])
def test_emomusic_what_is_no_time_is_refused(text):
    with pytest.raises(RequestError, match=r"min\.sec"):
        emomusic.seconds(text)


def test_trap_emomusic_every_cut_is_45_seconds_of_the_song_and_not_of_the_file(all_songs, load):
    cuts = [(clip.info["cut_from_s"], clip.info["cut_to_s"]) for clip in all_songs.clips]
    assert {float(end) - float(start) for start, end in cuts} == {45.0}
    assert {(clip.start_s, clip.end_s) for clip in load("emomusic").clips} == {(0.0, None)}


def test_trap_emomusic_tabs_around_values_and_names_that_are_not_ascii(roots, load):
    text = (roots["emomusic"] / "annotations/songs_info.csv").read_text(encoding="utf-8")
    assert "\tThe New Mystikal Troubadours\t" in text
    clips = by_id(load("emomusic"))
    for number, artist, title in (
        ("2", "The New Mystikal Troubadours", "Tonight  A Lonely Century"),
        ("275", "Caühaüs", "Χορός"),
    ):
        info = clips[number].info
        assert (info["artist"], info["title"]) == (artist, title)
    assert clips["275"].group == "cahas"  # letters beyond ASCII are deleted, not replaced


def test_trap_emomusic_digits_and_marks_are_deleted_before_hashing():
    assert emomusic.normalised("  My Bubba & Mi ") == "my bubba mi"
    for number in (1, 2):
        name = f"Circus Marcus-Aux puces nº{number}"
        assert emomusic.normalised(name) == "circus marcusaux puces n"
    assert emomusic.split("My Bubba & Mi", "development") == "train"
    assert emomusic.split("The New Mystikal Troubadours", "development") == "valid"
    assert emomusic.split("The New Mystikal Troubadours", "evaluation") == "test"


def test_trap_emomusic_artist_fields_that_hold_the_title_are_hashed_as_they_are(all_songs):
    clip = by_id(all_songs)["238"]
    assert clip.info["artist"] == "Kevin MacLeod-J. S. Bach  Prelude in C"
    assert (clip.group, clip.split) == ("kevin macleodj s bach prelude in c", "train")


def test_trap_emomusic_the_tables_decide_which_files_are_clips_and_ids_have_no_padding(roots, load):
    assert (roots["emomusic"] / "clips_45seconds/1.mp3").is_file()
    clips = by_id(load("emomusic"))
    assert "1" not in clips
    assert "2" in clips
    assert all(Path(clip.path).stem == number for number, clip in clips.items())


def test_trap_emomusic_labels_go_by_the_name_of_the_column_and_not_by_its_place(tree):
    root = tree("emomusic")
    before = datasets.load("emomusic", root)
    path = root / "annotations/static_annotations.csv"
    rows = [row.split(",") for row in path.read_text(encoding="utf-8").splitlines()]
    moved = [",".join([row[3], row[0], row[4], row[1], row[2]]) for row in rows]
    edit(path, lambda text: "\n".join(moved) + "\n")
    assert datasets.load("emomusic", root) == before


def test_emomusic_tables_may_lie_in_the_root(tmp_path):
    root = published.emomusic(tmp_path, seconds=0.05, songs=12, tables="")
    assert len(datasets.load("emomusic", root).clips) == 12


DEAM = "song_id, valence_mean, valence_std, arousal_mean, arousal_std\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("static_annotations", "2,3.1,", "2,nan,", "rates song 2"),
        ("static_annotations", "2,3.1,", "2,31,", "from 1 to 9"),
        ("static_annotations", "2,3.1,", "2,,", "rates song 2"),
        ("static_annotations", "\n2,", "\n6,", "no row for song 2"),
        ("static_annotations", None, DEAM, "no column 'mean_arousal'"),
        ("songs_info", "\n2,2.mp3", "\nx,2.mp3", "song_id is 'x'"),
        ("songs_info", ",development", ",training", "expected development or evaluation"),
        ("songs_info", "DD Groove", "DD, Groove", "row 3: has 9 fields"),
        ("songs_info", "Mediaeval 2013 set", "set", "no column 'Mediaeval 2013 set'"),
        ("songs_info", "\n3,3.mp3", "\n2,3.mp3", "two clips with the id '2'"),
        *(
            ("songs_info", None, text, "songs_info.csv has no column")
            for text in ("", "\n", "song_id\n")
        ),
    ],
)
def test_emomusic_tables_that_are_not_as_published_are_refused(spoil, file, old, new, says):
    def change(text):
        return (
            text.replace(old, new, 1) if old else new + text[text.index("\n") + 1 :] * (new == DEAM)
        )

    spoil("emomusic", f"annotations/{file}.csv", change, says)


def test_a_table_without_rows_is_refused(spoil):
    says = r"songs_info.csv has no rows"
    spoil("emomusic", "annotations/songs_info.csv", lambda text: text.split("\n")[0] + "\n", says)


def test_tables_with_windows_line_ends_and_a_byte_order_mark_read_the_same(tree):
    root = tree("emomusic")
    before = datasets.load("emomusic", root)
    for name in ("songs_info.csv", "static_annotations.csv"):
        edit(root / "annotations" / name, lambda text: "\ufeff" + text.replace("\n", "\r\n"))
    assert datasets.load("emomusic", root) == before


# --- GiantSteps key ---


def test_giantsteps_keeps_certain_single_keys_and_maps_sharps(load):
    dataset = load("giantsteps-key")
    assert sides(dataset) == {"train": 48, "valid": 24, "test": 24}
    assert dataset.task == tasks.Task("one-of", giantsteps.KEYS, metric="key_score")
    assert {clip.target for clip in dataset.clips} == set(giantsteps.KEYS)
    assert len(giantsteps.KEYS) == 24
    assert not any("#" in key for key in giantsteps.KEYS)
    assert not {"mtg/297011", "mtg/61578", "mtg/10981"} & set(by_id(dataset))
    assert np.diag(tasks.key_score_matrix(giantsteps.KEYS)).tolist() == [1.0] * 24


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("D# minor", "Eb minor"),
        ("eb minor\n", "Eb minor"),
        ("Bb\tMajor", "Bb major"),
        ("c# major", "Db major"),
        ("b minor", "B minor"),
    ],
)
def test_giantsteps_names_of_keys(text, name):
    assert giantsteps.key(text) == name


@pytest.mark.parametrize(
    "text", ["-", "", "H minor", "C", "C minor / D minor", "Cb major", "C dorian"]
)
def test_giantsteps_what_is_no_key_is_refused(text):
    with pytest.raises(RequestError, match=r"is no key"):
        giantsteps.key(text)


def test_giantsteps_collaborators_of_valid_artists_are_valid_within_two_hops():
    valid = published.artist_of("valid", 0)
    train = [published.artist_of("train", number) for number in range(5)]
    assert giantsteps.valid_artists([[valid], [train[0]]]) == {valid}
    met = [train[2:4], train[1:3], train[0:2], [valid, train[0]]]  # each pass reaches one further
    assert giantsteps.valid_artists(met) == {valid, *train[:2]}
    assert giantsteps.valid_artists(met[::-1]) == {valid, *train[:4]}  # one pass reaches all


def test_giantsteps_a_track_with_one_valid_artist_is_valid(tree):
    root, artist = tree("giantsteps-key"), published.artist_of("train", 0)
    table = root / "giantsteps-mtg-key-dataset-master/annotations/beatport_metadata.txt"
    friends = f"{artist}, {published.artist_of('valid', 0)}"
    edit(table, lambda text: text.replace(f"10000\t{artist}\t", f"10000\t{friends}\t"))
    dataset = datasets.load("giantsteps-key", root)
    assert by_id(dataset)["mtg/10000"].split == "valid"
    groups = {clip.group for clip in dataset.clips if clip.split == "train"}
    assert artist.lower() not in groups


@pytest.mark.parametrize("branch", ["", "-master", "-c8cb8aad2cb53f165be51ea099d0dc75c64a844f"])
def test_giantsteps_repositories_may_carry_a_branch_or_a_commit(tmp_path, branch):
    root = published.giantsteps(tmp_path, seconds=0.05, each=0, branch=branch)
    assert len(datasets.load("giantsteps-key", root).clips) == 48


def test_giantsteps_a_missing_repository_is_named(tree):
    root = tree("giantsteps-key")
    shutil.rmtree(root / "giantsteps-key-dataset-master")
    with pytest.raises(RequestError, match=r"no folder giantsteps-key-dataset with annotations"):
        datasets.load("giantsteps-key", root)


# --- NSynth ---


def test_nsynth_family_and_pitch(load):
    family, pitch = load("nsynth"), load("nsynth:pitch")
    assert family.task.names == tuple(published.FAMILIES)
    assert pitch.task.names == tuple(str(number) for number in range(128))
    for one, other in zip(family.clips, pitch.clips, strict=True):
        name, number, _ = one.id.rsplit("-", 2)
        assert name.startswith(one.target)
        assert int(number) == int(other.target)
        assert one.group == other.group == name


def test_trap_nsynth_a_family_that_is_absent_from_test_stays_a_class(load):
    dataset = load("nsynth")
    assert "synth_lead" not in {clip.target for clip in dataset.clips if clip.split != "train"}
    assert "synth_lead" in dataset.task.names


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"instrument_family": 0,', '"instrument_family": 11,', "from 0 to 10"),
        ("{", "[", "is not JSON"),
        ("", "{}", "is not JSON"),
        ('"instrument_family": 0,', "", "instrument_family of .* is None"),
    ],
)
def test_nsynth_lists_that_are_not_as_published_are_refused(spoil, old, new, says):
    change = lambda text: text.replace(old, new, 1)  # noqa: E731
    spoil("nsynth", "nsynth-train/examples.json", change, says)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"a": 1}'])
def test_nsynth_lists_without_notes_are_refused(spoil, content):
    says = r"nsynth-test/examples.json holds no notes"
    spoil("nsynth", "nsynth-test/examples.json", lambda text: content, says)


# --- MTG-Jamendo ---


@pytest.mark.parametrize("variant", ["top50tags", "genre", "instrument", "moodtheme"])
def test_jamendo_subsets_have_their_own_tags(load, variant):
    dataset = load(f"mtg-jamendo:{variant}")
    assert dataset.task == tasks.Task("many-of", tuple(sorted(published.JAMENDO_TAGS[variant])))
    assert sides(dataset) == {"train": 12, "valid": 6, "test": 6}


def test_trap_jamendo_rows_have_as_many_columns_as_tags(load):
    dataset = load("mtg-jamendo")
    assert {1, 2} <= {len(clip.target) for clip in dataset.clips}
    clip = by_id(dataset)["track_0000949"]
    assert clip.target == ["genre---rock", "instrument---piano"]  # 949 = ...0101 in binary
    assert clip.group == "artist_000316"
    low = dataset.clips[0]  # the low-quality copy, where it is alone
    assert low.path.endswith("48/948.low.mp3")


@pytest.mark.parametrize(
    ("audio_in", "lists"),
    [
        ("audio", "data/splits/split-0"),
        ("raw_30s/audio", "mtg-jamendo-dataset/data/splits/split-0"),
        ("raw_30s", "data/splits/split-0"),
    ],
)
def test_jamendo_layouts(tmp_path, audio_in, lists):
    root = published.jamendo(tmp_path, seconds=0.05, audio=audio_in, lists=lists)
    clips = datasets.load("mtg-jamendo", root).clips
    assert {Path(clip.path).parents[1] for clip in clips} == {root / audio_in}


def test_jamendo_a_row_without_tags_is_refused(spoil):
    row = "track_0000001\tartist_1\talbum_1\t01/1.mp3\t166.0\n"
    table = "data/splits/split-0/autotagging_top50tags-test.tsv"
    says = r"autotagging_top50tags-test.tsv, row 8"
    spoil("mtg-jamendo", table, lambda text: text + row, says)


# --- packaged lists ---


@pytest.mark.parametrize(
    ("name", "rows"),
    [("gtzan_fault_filtered.csv", 930), ("emomusic_jukemir.csv", 744), ("mtat_tags.csv", 188)],
)
def test_packaged_lists_are_whole(name, rows):
    assert len(sheet.packaged(name)) == rows
    assert sheet.packaged(name) == published.rows_of(name)


# --- traps of the sound ---


def decoded(path, samples, rate, **how):
    published.write(path, samples, rate)
    return audio.load(path, **how)


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (465_984, 16_000, (642_185, 1_255, 39)),  # MagnaTagATune
        (661_794, 22_050, (661_794, 1_293, 40)),  # GTZAN
        (45 * 44_100, 44_100, (992_250, 1_938, 60)),  # EmoMusic
    ],
)
def test_trap_lengths_in_samples_frames_and_patches(tmp_path, samples, rate, expected):
    wave = decoded(tmp_path / "clip.wav", np.zeros(samples, np.float32), rate)
    frames = spectrogram.log_mel(wave).shape[1]
    assert abs(len(wave) - expected[0]) <= 1
    assert (frames, len(spectrogram.patch_starts(frames))) == expected[1:]


def test_trap_mtat_mp3_length_is_taken_from_decoding_to_a_frame_or_two(tmp_path):
    samples = published.sound(440, seconds=465_984 / 16_000, rate=16_000)
    wave = decoded(tmp_path / "clip.mp3", samples, 16_000, sample_rate=16_000)
    assert abs(len(wave) - 465_984) <= 2 * 576


def test_trap_a_seek_in_mp3_is_exact_since_all_before_is_decoded(tmp_path):
    samples = published.sound(440, seconds=3, rate=44_100)
    whole = decoded(tmp_path / "clip.mp3", samples, 44_100, sample_rate=44_100)
    part = audio.load(tmp_path / "clip.mp3", sample_rate=44_100, start_s=1.0, end_s=2.0)
    np.testing.assert_array_equal(part, whole[44_100:88_200])


def test_trap_sound_sampled_at_16_khz_leaves_the_top_bands_empty(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
    wave = decoded(tmp_path / "clip.wav", noise, 16_000)
    level = spectrogram.log_mel(wave)[:, 4:-4].mean(1)
    lower = np.array(filters.mel_edges_hz(SpectrogramConfig())[:64])
    assert (lower > 8_000).sum() == 5
    assert level[lower > 8_000].max() < level[lower < 7_000].min() - 0.3  # 30 dB

"""The open benchmark's pure parts, on data made here: no SoundFont, no network, no music21."""

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import grooves
import groups
import judge
import measures
import notes
import numpy as np
import outcome
import pretraining
import pytest
import recordings
import score_sources
import scores
import sound
import soundfile
import tracks
import twins
import unheard
from measures import Answered, Question
from sklearn.metrics import average_precision_score, r2_score

from patchifier import audio, cache, datasets
from patchifier.config import RequestError
from patchifier.evaluate.encoders import Encoder
from patchifier.tasks import Task


@pytest.fixture
def write_wav(tmp_path):
    """Write a waveform below tmp_path."""

    def write(path, waveform):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / path, waveform, 22_050)

    return write


def rows_of(*specs):
    """Rows from (path, group, split) and more."""
    return [
        {"path": path, "group": group, "split": split, **more} for path, group, split, more in specs
    ]


# --- sides ---


def test_groups_are_dealt_to_sides_in_the_stated_shares_and_always_alike():
    names = [f"group {number}" for number in range(100)]
    sides = groups.deal(names, "a purpose")
    assert sorted(sides) == sorted(names)
    assert [list(sides.values()).count(side) for side in ("test", "valid", "train")] == [30, 20, 50]
    assert groups.deal(reversed(names), "a purpose") == sides
    assert groups.deal(names, "another purpose") != sides


def test_three_groups_stand_on_three_sides_and_two_train():
    assert sorted(groups.deal("abc", "few").values()) == ["test", "train", "valid"]
    assert set(groups.deal("ab", "few").values()) == {"train"}


def test_draws_depend_on_their_words_alone():
    assert (
        groups.dice("a", 1).integers(1000, size=4).tolist()
        == groups.dice("a", 1).integers(1000, size=4).tolist()
    )
    assert (
        groups.dice("a", 1).integers(1000, size=4).tolist()
        != groups.dice("a", 2).integers(1000, size=4).tolist()
    )


def test_a_manifest_with_a_group_on_two_sides_is_refused(tmp_path):
    rows = rows_of(("a.ogg", "one", "train", {}), ("b.ogg", "one", "test", {}))
    with pytest.raises(RequestError, match="'one' is on the sides train and test"):
        groups.write_manifest(tmp_path / "x.jsonl", rows)
    assert not (tmp_path / "x.jsonl").exists()


def test_a_manifest_that_names_a_clip_twice_is_refused():
    with pytest.raises(RequestError, match="1 rows name a clip that another names"):
        groups.require_split(
            rows_of(("a.ogg", "one", "train", {}), ("a.ogg", "one", "train", {})), "x.jsonl"
        )


def test_a_manifest_is_read_by_the_package_with_targets_sides_and_groups(tmp_path, write_wav):
    write_wav("clips/a.wav", np.full(2205, 0.1, np.float32))
    write_wav("clips/b.wav", np.full(2205, 0.1, np.float32))
    rows = rows_of(
        ("clips/a.wav", "g", "train", {"target": ["brass", "reed"]}),
        ("clips/b.wav", "h", "test", {"target": ["reed"]}),
    )
    groups.write_manifest(tmp_path / "tasks" / "x.jsonl", rows)
    found = datasets.load(tmp_path / "tasks" / "x.jsonl")
    assert found.task == Task("many-of", ("brass", "reed"))
    assert [(clip.split, clip.group, Path(clip.path).exists()) for clip in found.clips] == [
        ("train", "g", True),
        ("test", "h", True),
    ]


# --- what is never touched ---


@pytest.mark.parametrize(
    "name",
    [
        "nexuiz-music",
        "wesnoth-1.16-music",
        "supertux-data_0.6.3-1_all.deb",
        "TimGM6mb.sf2",
        "timgm6mb-soundfont",
        "opl3-soundfont",
    ],
)
def test_reserved_packages_and_soundfonts_are_refused_by_name(name):
    with pytest.raises(RequestError, match="reserved"):
        groups.require_free(name)


@pytest.mark.parametrize(
    "name", ["ufoai-music", "supertuxkart-data_1.4_all.deb", "FluidR3_GM.sf2", "sf_GMbank.sf2"]
)
def test_development_material_is_not_refused(name):
    groups.require_free(name)


def test_about_a_fifth_of_the_pieces_is_reserved_and_a_file_that_holds_one_is_refused(tmp_path):
    names = [f"piece {number}" for number in range(1000)]
    kept = [name for name in names if not groups.reserved_piece(name)]
    assert 760 < len(kept) < 840
    reserved = next(name for name in names if groups.reserved_piece(name))
    with gzip.open(tmp_path / "aird-airs.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"group": reserved}) + "\n")
    with pytest.raises(RequestError, match="reserved"):
        score_sources.read("aird-airs", tmp_path)


# --- leaks into pre-training ---


def benchmark(tmp_path, pretraining_row, recorded_row=None):
    """A root with one task and the two pre-training lists."""
    judged = rows_of(
        (
            "clips/a.ogg",
            "recordings/x/a",
            "train",
            {"source": "deb/x/a.ogg", "target": "1", "progression": "p1"},
        ),
        (
            "clips/b.ogg",
            "recordings/x/b",
            "test",
            {"source": "deb/x/b.ogg", "target": "2", "progression": "p2"},
        ),
    )
    groups.write_manifest(tmp_path / "tasks" / "recordings-retrieval.jsonl", judged)
    for name, row in zip(
        pretraining.NAMES, (pretraining_row, recorded_row or pretraining_row), strict=True
    ):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    return tmp_path


CLEAN = {
    "path": "pretraining/recordings/x/a-00.ogg",
    "group": "recordings/x/a",
    "source": "deb/x/a.ogg",
}


def test_pre_training_on_training_side_groups_passes_the_check(tmp_path):
    assert pretraining.check(benchmark(tmp_path, CLEAN)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": "recordings/x/b"}, "shares 'recordings/x/b'"),
        ({"source": "deb/x/b.ogg"}, "shares 'deb/x/b.ogg'"),
        ({"progression": "p2"}, "another side"),
        ({"soundfont": "sf_GMbank"}, "another side"),
        ({"source": "deb/nexuiz-music/a.ogg"}, "reserved"),
        ({"source": "work/mixed/nexuiz-music/a.flac"}, "reserved"),
    ],
)
def test_pre_training_that_shares_anything_with_the_judged_sides_is_refused(tmp_path, change, says):
    with pytest.raises(RequestError, match=says):
        pretraining.check(benchmark(tmp_path, CLEAN, CLEAN | change))


def tune(seed, *, key=0, slower=1.0, notes=40):
    """A melody drawn by chance: rows [start, length, pitch, part]."""
    generator = np.random.default_rng(seed)
    lengths, pitches = generator.choice([0.5, 1.0, 1.5], notes), generator.integers(60, 72, notes)
    return [
        [
            float(slower * (lengths[:number].sum())),
            float(slower * lengths[number]),
            int(pitches[number]) + key,
            0,
        ]
        for number in range(notes)
    ]


def in_parts(*melodies):
    return sorted([*note[:3], part] for part, melody in enumerate(melodies) for note in melody)


def test_the_same_music_in_another_key_and_at_half_the_speed_is_found_and_a_shared_melody_alone_is_not():
    one = in_parts(tune(1), tune(2), tune(3), tune(4))
    assert twins.figures(one) == twins.figures(
        in_parts(*(tune(seed, key=5, slower=2.0) for seed in (1, 2, 3, 4)))
    )
    notes = {
        "first": one,
        "edition": in_parts(*(tune(seed, key=-3) for seed in (1, 2, 3, 4))),
        "setting": in_parts(tune(1), tune(7), tune(8), tune(9)),
    }
    pieces = [piece(group=group, notes=each) for group, each in notes.items()]
    assert list(twins.twins(pieces)) == [(0, 1)]
    assert list(twins.twins([each | {"group": "one mass"} for each in pieces])) == []


def test_a_piece_that_trains_or_is_judged_elsewhere_under_another_name_is_not_judged():
    sides = {
        "heard": "train",
        "heard-too": "train",
        "again": "test",
        "valid": "valid",
        "late": "test",
        "alone": "test",
    }
    tunes = {"heard": 1, "heard-too": 1, "again": 1, "valid": 2, "late": 2, "alone": 3}
    dealt = [
        (piece(group=name, id=name, notes=tune(tunes[name])), side) for name, side in sides.items()
    ]
    assert [each["group"] for each, _ in twins.without_twins(dealt[::-1])][::-1] == [
        "heard",
        "heard-too",
        "valid",
        "alone",
    ]


@pytest.mark.parametrize(
    ("judged", "says"), [(1, "heard#1 and asked#1 are the same music"), (2, "")]
)
def test_scores_that_are_judged_under_another_name_may_not_be_heard(
    tmp_path, monkeypatch, judged, says
):
    held = [
        piece(group=group, id=group, notes=tune(seed))
        for group, seed in (("heard#1", 1), ("asked#1", judged))
    ]
    monkeypatch.setattr(scores, "dealt", lambda root: [(held[0], "train"), (held[1], "test")])
    root = benchmark(
        tmp_path,
        {"path": "pretraining/scores/heard#1-0.ogg", "group": "scores/heard#1", "kind": "scores"},
    )
    rows = rows_of(("clips/scores/asked#1.ogg", "scores/asked#1", "test", {"target": "a"}))
    groups.write_manifest(tmp_path / "tasks" / "scores-mode.jsonl", rows)
    if says:
        with pytest.raises(RequestError, match=says):
            pretraining.check(root)
    else:
        assert pretraining.check(root) == 2


def test_a_reserved_piece_may_not_be_heard(tmp_path):
    reserved = next(name for name in map(str, range(100)) if groups.reserved_piece(name))
    with pytest.raises(RequestError, match="reserved"):
        pretraining.check(
            benchmark(
                tmp_path,
                {
                    "path": "pretraining/scores/a-0.ogg",
                    "group": f"scores/{reserved}",
                    "kind": "scores",
                },
            )
        )


def test_a_track_of_the_demo_may_not_be_heard(tmp_path):
    package, inside = sorted(recordings.demo_files())[0]
    with pytest.raises(RequestError, match="demo"):
        pretraining.check(benchmark(tmp_path, CLEAN | {"source": f"deb/{package}/{inside}"}))


def track(number, package="game", **more):
    facts = {
        "artist": "somebody",
        "title": "t",
        "licence": "CC0",
        "seconds": 100.0,
        "rate": 44_100,
        "channels": 2,
        "kbps": 128.0,
        "codec": "ogg",
    }
    inside = f"music/{number:02d}.ogg"
    return tracks.Track(
        f"deb/{package}/{inside}",
        package,
        inside,
        f"recordings/{package}/{number:02d}",
        **(facts | more),
    )


def test_tracks_of_the_demo_test_a_fifth_of_the_others_validates_and_only_the_rest_is_heard_in_pre_training():
    package, inside = sorted(recordings.demo_files())[0]
    shown = tracks.Track(
        f"deb/{package}/{inside}",
        package,
        inside,
        "recordings/shown",
        "a",
        "t",
        "CC0",
        100.0,
        44_100,
        2,
        128.0,
        "ogg",
    )
    every = [shown, *(track(number) for number in range(20))]
    where = recordings.sides(every)
    assert where["recordings/shown"] == "test"
    assert sorted(where.values()).count("valid") == 4
    heard = {row["group"] for _, row in pretraining.draw_recordings(every)}
    assert heard == {group for group, side in where.items() if side == "train"}


def test_a_track_that_stands_under_two_names_is_neither_heard_nor_asked():
    groups = [*recordings.COPIES, *recordings.COPIES.values()]
    every = [track(number) for number in range(4)] + [
        replace(track(50 + number), group=group) for number, group in enumerate(groups)
    ]
    for found in (
        recordings.draw(every),
        pretraining.draw_recordings(every),
        pretraining.draw_recordings([], every),
    ):
        assert {row["group"] for _, row in found} <= {
            f"recordings/game/{number:02d}" for number in range(4)
        }
        assert found


@pytest.mark.parametrize("hidden", [True, False])
def test_judged_music_under_another_name_is_found_by_its_sound(
    tmp_path, monkeypatch, noise, hidden
):
    load = datasets.load
    monkeypatch.setattr(
        datasets, "load", lambda source: load(tmp_path / "demo" if source == "demo" else source)
    )
    sounds = {
        "demo/a.wav": noise(12.0, seed=1),
        "asked.wav": noise(12.0, seed=2),
        "tasks/clip.wav": noise(12.0, seed=3),
    }
    sounds |= {
        "heard/other.wav": noise(12.0, seed=4),
        "heard/b.wav": 0.5 * sounds["tasks/clip.wav"] if hidden else noise(12.0, seed=5),
    }
    for name, samples in sounds.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        audio.save(tmp_path / name, samples)
    rows = [
        {"path": "clip.wav", "split": "test", "target": "x", "group": "g"},
        {"path": "../asked.wav", "split": "train", "target": "y", "group": "h"},
    ]
    (tmp_path / "tasks" / "recordings-retrieval.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    cache.prepare(datasets.load(tmp_path / "heard"), tmp_path / "cache-all", workers=1)
    if hidden:
        with pytest.raises(RequestError, match=r"b\.wav = clip\.wav.*COPIES"):
            unheard.require_unheard(tmp_path, 1)
    else:
        assert unheard.require_unheard(tmp_path, 1) == 2


def test_clips_of_a_track_never_overlap_and_stay_away_from_its_ends():
    cuts = [cut for cut, _ in recordings.draw([track(number, seconds=77.0) for number in range(4)])]
    for source in {cut.source for cut in cuts}:
        places = sorted(
            (min(cut.starts_s), max(cut.starts_s)) for cut in cuts if cut.source == source
        )
        assert len(places) == 4
        assert places[0][0] >= 2.0
        assert places[-1][1] + 10.0 <= 75.0
        assert all(after[0] >= before[1] + 10.0 for before, after in itertools.pairwise(places))


def test_long_tracks_are_cut_for_pre_training_and_a_short_rest_is_dropped():
    assert pretraining.stretches(79.0) == [(0.0, 30.0), (30.0, 60.0), (60.0, 79.0)]
    assert pretraining.stretches(70.0) == [(0.0, 30.0), (30.0, 60.0)]


def test_variants_of_a_song_are_one_group_and_an_artist_has_one_spelling():
    assert tracks.song("supertuxkart-data", "Oasis_fast") == tracks.song(
        "supertuxkart-data", "oasis"
    )
    assert (
        tracks.one_spelling("Gerd (elysis) Raudenbusch")
        == tracks.one_spelling("www.elysis.de")
        == "elysis"
    )
    assert tracks.one_spelling("Somebody <me@example.org>") == "Somebody"


def test_a_copyright_file_means_a_moved_file_by_the_end_of_its_path():
    assert tracks.matches("data/music/a.ogg", "usr/share/games/x/data/music/a.ogg")
    assert tracks.matches("music/*", "usr/share/x/music/b.ogg")
    assert not tracks.matches("music/a.ogg", "usr/share/x/music/b.ogg")
    assert not tracks.matches("debian/*", "usr/share/debian/b.ogg")


def test_only_labels_with_tracks_on_every_side_are_told_apart():
    rows = [
        {
            "path": f"{name}{side}{number}",
            "group": f"{name}{side}{number}",
            "split": side,
            "artist": name,
        }
        for name, sides in (("full", ("train", "valid", "test")), ("untested", ("train", "valid")))
        for side in sides
        for number in range(3)
    ]
    assert {row["artist"] for row in recordings.told_apart(rows, "artist")} == {"full"}


# --- one way of writing ---


def test_every_clip_has_the_asked_length_and_level_and_peaks_below_full_scale(noise):
    quiet = sound.finish(noise(3.0, rate=44_100, level=0.001), 44_100, 2.0, -20.0)
    assert quiet.shape == (44_100,)
    assert 20 * np.log10(np.sqrt(np.mean(quiet**2))) == pytest.approx(-20.0, abs=0.1)
    click = np.zeros(22_050, np.float32)
    click[::5000] = 0.5
    assert np.abs(sound.finish(click, 22_050, 1.0, -16.0)).max() == pytest.approx(0.98, abs=1e-3)


def test_the_end_of_a_waveform_is_kept_and_a_short_one_is_padded_in_front(tone):
    waveform = np.concatenate([np.zeros(22_050, np.float32), tone(seconds=0.5)])
    assert np.abs(sound.finish(waveform, 22_050, 0.5, -20.0)[:100]).max() > 0.01
    padded = sound.finish(tone(seconds=0.5), 22_050, 1.0, -20.0)
    assert not padded[:11_000].any()
    assert padded[11_100:].any()


def test_silence_is_refused(silence):
    with pytest.raises(RequestError, match="silent"):
        sound.finish(silence(1.0), 22_050, 1.0, -20.0)


def test_clips_of_any_source_are_written_in_one_format(tmp_path, noise):
    sound.write(tmp_path / "a" / "x.ogg", sound.finish(noise(1.2, rate=48_000), 48_000, 1.0, -20.0))
    facts = soundfile.info(tmp_path / "a" / "x.ogg")
    assert (facts.samplerate, facts.channels, facts.format, facts.subtype, facts.frames) == (
        22_050,
        1,
        "OGG",
        "VORBIS",
        22_050,
    )


def test_a_recording_is_cut_where_it_is_not_silent_and_not_cut_again(tmp_path, tone, write_wav):
    write_wav("long.wav", np.concatenate([np.zeros(22_050 * 12, np.float32), tone(seconds=12.0)]))
    cuts = [
        recordings.Cut(f"clips/{name}.ogg", "long.wav", starts, 10.0, -20.0)
        for name, starts in (("x", (1.0, 13.0)), ("silent", (0.0, 1.0)), ("y", (12.5,)))
    ]
    recordings.cut_out(tmp_path, recordings.Cuts("clips/y.ogg", tuple(cuts)))
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["x.ogg", "y.ogg"]
    stamp = (tmp_path / "clips/x.ogg").stat().st_mtime_ns
    recordings.cut_out(tmp_path, recordings.Cuts("clips/y.ogg", tuple(cuts)))
    assert (tmp_path / "clips/x.ogg").stat().st_mtime_ns == stamp


# --- scores ---


def piece(collection="ryan-fiddle", **more):
    tune = [
        [float(number), 1.0, pitch, 0]
        for number, pitch in enumerate(
            [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 67, 64, 60, 55, 60]
        )
    ]
    facts = {
        "collection": collection,
        "group": "a#1",
        "id": f"{collection}/1",
        "parts": 1,
        "quarters": 16.0,
        "onsets": 16,
        "notes": tune,
    }
    return facts | {"metres": [[0.0, "4/4"]], "keys": [[0.0, 0, 0, "major"]]} | more


def test_labels_follow_the_transposition_and_the_sound_is_tuned_and_levelled_within_bounds():
    seen = set()
    for number in range(40):
        sounding, place = scores.perform(piece(), f"clips/{number}.ogg", sound.SEEN, 10.0)
        label = scores.describe(piece(), sounding, place)
        seen.add(label["tonic"])
        assert label["tonic"] == scores.NAMES[int(place["transposed"]) % 12]
        assert label["key"] == f"{label['tonic']} major"
        assert -50 <= sounding.tuning_cents <= 50
        assert -24 <= sounding.level_db <= -16
        assert {note.pitch for note in sounding.notes} <= {
            pitch + int(place["transposed"]) for _, _, pitch, _ in piece()["notes"]
        }
    assert len(seen) > 8


def test_the_same_path_is_performed_alike_whatever_its_collection_so_timbre_tells_no_label():
    one, _ = scores.perform(piece("ryan-fiddle"), "clips/a.ogg", sound.SEEN, 10.0)
    two, _ = scores.perform(piece("essen-china"), "clips/a.ogg", sound.SEEN, 10.0)
    assert one == two


def test_a_tuba_plays_octaves_lower_what_it_cannot_reach():
    assert [scores.playable(pitch, 58) for pitch in (66, 67, 90)] == [66, 55, 66]
    assert scores.playable(90, 0) == 90


def test_a_short_piece_begins_again_and_its_onsets_are_those_within_the_clip():
    sounding, place = scores.perform(piece(), "clips/a.ogg", sound.SEEN, 30.0)
    label = scores.describe(piece(), sounding, place)
    assert label["looped"] == 1
    expected = 30.0 * 16 / place["length_s"]
    assert abs(label["onsets"] - expected) <= 2


def test_a_chord_with_jitter_is_one_onset():
    assert scores.moments([0.51, 0.5, 0.505, 1.0, 1.3]) == [0.5, 1.0, 1.3]


@pytest.mark.parametrize(
    "more", [{"keys": [[0.0, 0, 0, "dorian"]]}, {"keys": [[0.0, 6, 6, "major"]]}, {"keys": []}]
)
def test_a_key_that_is_modal_not_confirmed_by_the_notes_or_not_notated_is_no_label(more):
    doubtful = piece(**more)
    label = scores.describe(doubtful, *scores.perform(doubtful, "clips/a.ogg", sound.SEEN, 10.0))
    assert (label["key"], label["mode"], label["tonic"]) == ("", "", "")


def test_a_metre_that_changes_is_no_label():
    changing = piece(metres=[[0.0, "4/4"], [0.001, "3/4"]])
    assert (
        scores.describe(changing, *scores.perform(changing, "clips/a.ogg", sound.SEEN, 10.0))[
            "metre"
        ]
        == ""
    )
    assert (
        scores.describe(piece(), *scores.perform(piece(), "clips/a.ogg", sound.SEEN, 10.0))["metre"]
        == "4/4"
    )


def test_a_metre_is_the_one_in_force_at_the_start_of_the_clip():
    changes = [[0.0, "4/4"], [8.0, "3/4"]]
    assert scores.in_force(changes, 7.9) == [0.0, "4/4"]
    assert scores.in_force(changes, 8.0) == [8.0, "3/4"]
    assert scores.constant(changes, 8.5, 20.0)
    assert not scores.constant(changes, 7.0, 9.0)


def test_abc_text_gives_fields_and_metres_and_patterns_their_choices():
    tune = "X:3\nT:A tune\nM:C\nK:Gm\nabc [M:3/4] def\n"
    assert score_sources.field(tune, "K") == "Gm"
    assert score_sources.abc_metres(tune) == [[0.0, "4/4"], [0.001, "3/4"]]
    assert score_sources.braces("{a,b}/x.{c,d}") == ["a/x.c", "a/x.d", "b/x.c", "b/x.d"]


def test_balance_within_a_collection_leaves_equally_many_of_each_label_on_each_side():
    rows = [
        {
            "path": f"{place}{side}{label}{number}",
            "group": f"{place}{side}{label}{number}",
            "split": side,
            "place": place,
            "mode": label,
        }
        for place, counts in (("a", {"major": 20, "minor": 6}), ("b", {"major": 9, "minor": 2}))
        for side in ("train", "valid")
        for label, count in counts.items()
        for number in range(count)
    ]
    kept = groups.balanced(rows, "mode", "place")
    assert {row["place"] for row in kept} == {"a"}  # in b minor is too rare, which leaves one label
    for side in ("train", "valid"):
        assert [
            sum(row["mode"] == mode and row["split"] == side for row in kept)
            for mode in ("major", "minor")
        ] == [6, 6]


# --- notes ---


def test_validation_hears_presets_that_training_did_not_and_the_test_another_soundfont():
    train, valid = notes.presets("train"), notes.presets("valid")
    for family, programs in notes.FAMILIES.items():
        assert train[family]
        assert valid[family]
        assert sorted(train[family] + valid[family]) == sorted(programs)
    assert {each.soundfont for each, row in notes.draw_singles() if row["split"] == "test"} == {
        sound.UNSEEN
    }
    assert {each.soundfont for each, row in notes.draw_singles() if row["split"] != "test"} == {
        sound.SEEN
    }


def test_labels_of_notes_and_chords_are_those_of_the_pitches_played():
    for each, row in notes.draw_singles()[::97]:
        (note,) = each.notes
        assert row["pitch_class"] == scores.NAMES[note.pitch % 12]
        assert row["octave"] == f"octave {note.pitch // 12 - 1}"
        assert each.programs[0] in notes.FAMILIES[row["family"]]
    for each, row in notes.draw_chords()[::41]:
        pitches = {note.pitch % 12 for note in each.notes}
        assert any(
            {(root + degree) % 12 for degree in notes.QUALITIES[row["quality"]]} == pitches
            for root in range(12)
        )
    for each, row in notes.draw_mixtures()[::53]:
        assert [
            next(family for family, programs in notes.FAMILIES.items() if program in programs)
            for program in each.programs.values()
        ] == row["families"]
        assert {note.channel for note in each.notes} == set(each.programs)


# --- grooves ---

STYLES = {
    name: (name.title(), 4)
    for name in (*grooves.STYLED, *(f"four{number}" for number in range(12)))
} | {f"three{number}": (f"T{number}", 3) for number in range(9)}


def test_progressions_and_styles_keep_to_one_side():
    for drawn in (grooves.draw_styled(STYLES), grooves.draw_others(STYLES)):
        for key in ("group", "progression"):
            sides = {}
            for _, row in drawn:
                assert sides.setdefault(row[key], row["split"]) == row["split"]
    assert {row["style"] for _, row in grooves.draw_styled(STYLES)} == set(grooves.STYLED)


def test_metre_has_as_many_in_three_as_in_four_on_every_side():
    rows = grooves.metred([row for _, row in grooves.draw_others(STYLES)])
    for side in ("train", "valid", "test"):
        counts = [
            sum(row["beats"] == beats and row["split"] == side for row in rows) for beats in (3, 4)
        ]
        assert counts[0] == counts[1] > 0


def test_chords_and_beats_of_a_clip_count_from_its_start():
    bars = (
        (("C", "maj"),),
        (("G", "7"), ("A", "min")),
        (("C", "maj7"),),
        (("F", "maj"),),
        (("F", "maj"),),
        (("C", "maj"),),
        (("C", "maj"),),
    )
    groove = grooves.Groove("x.ogg", sound.SEEN, "Swing", 4, 120.0, bars, 3.0)  # a bar lasts 2 s
    assert grooves.chord_rows(groove) == [
        [0.0, 1.0, "A:min"],
        [1.0, 3.0, "C:maj7"],
        [3.0, 7.0, "F:maj"],
        [7.0, 10.0, "C:maj"],
    ]
    beats = grooves.beat_rows(groove)
    assert beats[:4] == [[0.0, 3], [0.5, 4], [1.0, 1], [1.5, 2]]
    assert len(beats) == 20
    assert grooves.chart(groove, 7).splitlines()[:5] == [
        "RndSeed 7",
        "Tempo 120",
        "Groove Swing",
        "1 C",
        "2 G7 / Am /",
    ]


def test_tempi_are_whole_numbers_since_mma_drops_what_is_behind_the_point():
    assert {groove.tempo_bpm % 1 for groove, _ in grooves.draw_others(STYLES)} == {0.0}


def test_who_names_the_class_of_a_tempo_is_within_four_per_cent():
    for bpm in np.linspace(60, 180, 97):
        assert abs(float(grooves.tempo_class(bpm).split()[0]) / bpm - 1) <= measures.TOLERANCE


def test_notes_of_a_midi_file_are_paired_and_one_without_an_end_lasts_two_seconds():
    class NoteOn:
        def __init__(self, key, velocity):
            self.key, self.velocity = key, velocity

    class ProgramChange:
        def __init__(self, program):
            self.program = program

    class Event:
        def __init__(self, t, action):
            self.t, self.action, self.channel = t, action, 2

    events = [
        Event(0.0, ProgramChange(33)),
        Event(0.1, NoteOn(40, 90)),
        Event(0.5, NoteOn(40, 0)),
        Event(0.6, NoteOn(43, 80)),
    ]
    assert grooves.pair_notes(events) == [(2, 0.1, 0.5, 33, 40, 90), (2, 0.6, 2.6, 33, 43, 80)]


# --- measures ---


def once(measure, n):
    return float(measure(np.ones((1, n)))[0])


def test_average_precision_and_r2_are_those_of_scikit_learn_with_weights_as_repetitions():
    generator = np.random.default_rng(0)
    truth, said = (
        (generator.random((60, 4)) < 0.4).astype(float),
        np.round(generator.random((60, 4)), 1),
    )  # many ties
    chosen = generator.integers(0, 60, 60)
    weights = np.bincount(chosen, minlength=60)[None].astype(float)
    assert measures.average_precision(truth, said)(weights)[0] == pytest.approx(
        average_precision_score(truth[chosen], said[chosen])
    )
    assert once(measures.average_precision(truth, said), 60) == pytest.approx(
        average_precision_score(truth, said)
    )
    assert measures.r2(truth[:, 0], said[:, 0])(weights)[0] == pytest.approx(
        r2_score(truth[chosen, 0], said[chosen, 0])
    )


def test_a_tempo_of_half_or_double_counts_for_the_second_accuracy_alone():
    true, said = np.array([100.0, 100.0, 100.0, 100.0]), np.array([103.9, 201.0, 33.0, 150.0])
    assert measures.near(true, said, octaves=False).tolist() == [True, False, False, False]
    assert measures.near(true, said, octaves=True).tolist() == [True, True, True, False]


def test_retrieval_finds_other_clips_of_the_track_never_the_clip_itself():
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    assert measures.hits(features, ["a", "a", "b", "c", "b"], 1).tolist() == [1, 1, 0, 0, 1]
    assert measures.hits(features, ["a", "a", "b", "c", "b"], 4).tolist() == [1, 1, 1, 0, 1]


def test_chance_of_a_hit_is_what_random_features_reach():
    names = [str(number // 3) for number in range(60)]
    generator = np.random.default_rng(0)
    found = np.mean(
        [measures.hits(generator.normal(size=(60, 8)), names, 5).mean() for _ in range(200)]
    )
    assert measures.chance_of_hit(names, 5) == pytest.approx(found, abs=0.01)


def test_scores_are_placed_between_chance_and_ceiling():
    assert measures.normalise(np.array([0.2, 0.6, 1.0]), 0.2).tolist() == pytest.approx(
        [0.0, 0.5, 1.0]
    )
    with pytest.raises(RequestError, match="single label"):
        measures.normalise(np.array([1.0]), 1.0)


def answers(level, seed):
    """An encoder that is right in a share of the clips, on every question of the endpoint."""
    given = []
    for number, question in enumerate(measures.QUESTIONS):
        right = (np.random.default_rng(seed + number).random(120) < level).astype(float)
        groups_of = tuple(f"group {index // 3}" for index in range(120))
        given += [
            Answered(question, name, groups_of, 0.25, (measures.mean_of(right),))
            for name in question.measures
        ]
    return given


def test_groups_are_drawn_whole_and_alike_in_all_tasks_of_a_family():
    first, second = measures.draw_weights([("a", "a", "b"), ("b", "c")], draws=50)
    assert first.shape == (51, 3)
    assert (first[0] == 1).all()
    assert (first[:, 0] == first[:, 1]).all()
    assert (first[:, 2] == second[:, 0]).all()
    assert (first[1:, 0] + first[1:, 2] + second[1:, 1] == 3).all()


def test_the_endpoint_is_the_mean_of_families_of_normalised_scores_whatever_the_number_of_tasks():
    given = []
    for question in measures.QUESTIONS:
        level = 1.0 if question.family == "recordings" else 0.25
        given += [
            Answered(question, name, ("a", "b"), 0.25, (measures.mean_of(np.full(2, level)),))
            for name in question.measures
        ]
    found = {
        row["family"]: row["value"] for row in outcome.summarise({"it": given}, "valid").families
    }
    assert found == pytest.approx(
        {"scores": 0.0, "grooves": 0.0, "notes": 0.0, "recordings": 1.0, "endpoint": 0.25}
    )


def test_a_better_encoder_differs_from_the_first_and_an_equal_one_does_not():
    found = outcome.summarise(
        {"good": answers(0.8, 0), "equal": answers(0.8, 0), "bad": answers(0.5, 100)}, "valid"
    )
    equal, bad = [row for row in found.differences if row["family"] == "endpoint"]
    assert len(found.differences) == 2 * (1 + len(measures.FAMILIES))
    assert (equal["value"], equal["low"], equal["high"]) == (0.0, 0.0, 0.0)
    assert bad["low"] > 0.2
    assert bad["p_holm"] < 0.01 < equal["p_holm"]


def test_an_encoder_that_did_not_answer_everything_has_no_endpoint():
    found = outcome.summarise(
        {
            "whole": answers(0.8, 0),
            "part": [each for each in answers(0.8, 0) if each.question.family != "notes"],
        },
        "valid",
    )
    assert [row["encoder"] for row in found.families if row["family"] == "endpoint"] == ["whole"]
    assert {row["family"] for row in found.differences} == {"scores", "grooves", "recordings"}


def test_a_row_of_several_runs_is_their_mean_and_says_what_each_has():
    both = [
        replace(one, runs=(*one.runs, *two.runs))
        for one, two in zip(answers(0.8, 0), answers(0.4, 0), strict=True)
    ]
    found = outcome.summarise(
        {"both": both, "good": answers(0.8, 0), "bad": answers(0.4, 0)}, "valid"
    )
    endpoint = {
        row["encoder"]: row["value"] for row in found.families if row["family"] == "endpoint"
    }
    assert endpoint["both"] == pytest.approx((endpoint["good"] + endpoint["bad"]) / 2)
    assert found.notes == [
        f"both is the mean of 2 runs; endpoints one by one: {100 * endpoint['good']:.1f}, {100 * endpoint['bad']:.1f}."
    ]


def test_rows_are_named_and_hold_several_runs():
    assert judge.read_row("mel-stats") == ("mel-stats", ["mel-stats"])
    assert judge.read_row("features:some+where/%FAMILY%") == (
        "features:some+where/%FAMILY%",
        ["features:some+where/%FAMILY%"],
    )
    assert judge.read_row("mine=runs/0/model+runs/1/model") == (
        "mine",
        ["runs/0/model", "runs/1/model"],
    )


def test_a_folder_may_be_called_with_an_equals_sign(tmp_path, monkeypatch):
    (tmp_path / "runs/lr=1e-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert judge.read_row("runs/lr=1e-3") == ("runs/lr=1e-3", ["runs/lr=1e-3"])
    assert judge.read_row("random:runs/lr=1e-3") == ("random:runs/lr=1e-3", ["random:runs/lr=1e-3"])
    assert judge.read_row("random weights=random:runs") == ("random weights", ["random:runs"])
    assert judge.read_row("mine=runs/lr=1e-3") == ("mine", ["runs/lr=1e-3"])


def test_a_row_that_is_no_encoder_is_named(small_benchmark, tmp_path):
    with pytest.raises(
        RequestError, match=r"row mine: 'nothing' is no encoder.*'=' ends a row's name"
    ):
        judge.judge(
            small_benchmark, ["mine=nothing"], "valid", tmp_path / "out", families=["notes"]
        )


def test_a_draw_of_one_truth_alone_has_no_r2():
    found = measures.r2(np.array([0.3, 0.3, 0.7]), np.array([0.2, 0.5, 0.7]))(
        np.array([[1.0, 1, 1], [2, 1, 0]])
    )
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_two_rows_of_one_name_are_refused(tmp_path):
    with pytest.raises(RequestError, match="two rows have one name"):
        judge.judge(tmp_path, ["mine=mel-stats", "mine=mfcc"], "valid", tmp_path / "out")


def test_tables_and_figure_hold_every_encoder_and_every_measure(tmp_path):
    diagnosed = Answered(
        measures.DIAGNOSTICS[0], "accuracy", ("a", "b"), 0.5, (measures.mean_of(np.ones(2)),)
    )
    found = outcome.summarise(
        {
            "good": [*answers(0.8, 0), diagnosed],
            "bad": answers(0.5, 50),
            judge.METADATA: [diagnosed],
        },
        "valid",
        ["A note."],
    )
    outcome.write_outcome(found, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in ("chance", "good", "bad", judge.METADATA))
    assert all(
        f"| {question.task} ({name}) |" in table
        for question in measures.QUESTIONS
        for name in question.measures
    )
    assert "A note." in table
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (
        len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 2 * len(answers(0.5, 0)) + 2
    )


# --- judging, on sounds made here ---


@pytest.fixture
def small_benchmark(tmp_path, tone, write_wav):
    """A root whose every task is about tones of two pitches; test clips are broken files that nobody may look at."""
    clips = []
    for side, count in (("train", 24), ("valid", 12)):
        for number in range(count):
            hz = 220.0 if number % 2 else 880.0
            path = f"clips/{side}{number:02d}.wav"
            write_wav(path, tone(hz * (1 + 0.002 * number), seconds=1.0, level=0.1 + 0.02 * number))
            clips.append(
                {
                    "path": path,
                    "split": side,
                    "group": f"{side}{number // 2}",
                    "low": number % 2,
                    "rate": 44_100,
                    "channels": 1,
                    "kbps": 99.0,
                    "codec": "ogg",
                }
            )
    clips.append(
        {
            "path": "clips/test.wav",
            "split": "test",
            "group": "test",
            "low": 0,
            "rate": 44_100,
            "channels": 1,
            "kbps": 99.0,
            "codec": "ogg",
        }
    )
    (tmp_path / "clips/test.wav").write_bytes(b"nobody looks")
    targets = {
        "key": ("C major", "A minor"),
        "tempo": ("060.00 bpm", "085.00 bpm"),
        "onset-rate": (0.5, 1.5),
        "instruments": (["a"], ["a", "b"]),
    }
    for question in (*measures.QUESTIONS, *measures.DIAGNOSTICS):
        names = targets.get(question.task, ("high", "low"))
        more = {"metric": "key_score"} if question.task == "key" else {}
        groups.write_manifest(
            tmp_path / "tasks" / f"{question.name}.jsonl",
            [row | {"target": names[row["low"]]} | more for row in clips],
        )
    return tmp_path


def test_judging_asks_the_validation_side_alone_and_fills_every_column(small_benchmark, tmp_path):
    generator = np.random.default_rng(0)
    for family in measures.FAMILIES:  # somebody else's features, which say nothing
        for path in (small_benchmark / "clips").glob("*[0-9].wav"):
            (tmp_path / "others" / family / "clips").mkdir(parents=True, exist_ok=True)
            np.save(
                tmp_path / "others" / family / "clips" / f"{path.stem}.npy",
                generator.random(4, np.float32),
            )
    others = f"features:{tmp_path}/others/%FAMILY%"
    found = judge.judge(
        small_benchmark, ["mel-stats", f"others={others}+{others}"], "valid", tmp_path / "out"
    )
    assert {row["n"] for row in found.scores} == {12}
    mel = {
        (row["family"], row["task"], row["measure"]): row["value"]
        for row in found.scores
        if row["encoder"] == "mel-stats"
    }
    assert set(mel) == {
        (question.family, question.task, name)
        for question in (*measures.QUESTIONS, *measures.DIAGNOSTICS)
        for name in question.measures
    }
    assert mel["notes", "octave", "accuracy"] > 0.75
    blind = [row for row in found.scores if row["encoder"] == judge.METADATA]
    assert {(row["task"], row["value"]) for row in blind} == {
        ("soundtrack", 0.5),
        ("artist", 0.5),
    }  # the same for every file
    assert {row["second"] for row in found.differences} == {"others"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["side"] == "valid"
    assert results["runs"] == {"mel-stats": ["mel-stats"], "others": [others, others]}


def test_what_is_known_of_training_clips_serves_both_sides(small_benchmark, tone, write_wav):
    write_wav("clips/test.wav", tone(440.0, seconds=1.0))
    heard = []

    def encode(data, indices, **more):
        heard.append([data.clips[index].id for index in indices])
        return np.arange(len(indices), dtype=np.float32)[:, None]

    encoder = Encoder("counted", encode, identity="counted")
    for side, new in (("valid", 36), ("test", 1), ("test", 0)):
        judgement = judge.Judgement(small_benchmark, side)
        table = judge.features(judgement, encoder, "notes", judgement.cache("notes", workers=1))
        assert sum(map(len, heard)) == new
        assert len(table.rows) == (36 if side == "valid" else 37)
        heard.clear()


def test_moments_are_asked_of_the_judged_side_and_clear_beats_are_found(
    tmp_path, silence, write_wav
):
    rows = []
    for number in range(12):
        waveform, first = silence(6.0), 0.1 + 0.03 * number
        beats = [[round(first + 0.5 * beat, 3), beat % 4 + 1] for beat in range(11)]
        for time, _ in beats:
            waveform[round(22_050 * time) :][:400] = 0.5
        write_wav(f"clips/{number}.wav", waveform)
        rows.append(
            {
                "path": f"clips/{number}.wav",
                "group": str(number),
                "split": "train" if number < 8 else "valid",
                "target": beats,
                "metric": "beats",
            }
        )
    groups.write_manifest(tmp_path / "tasks" / "grooves-beats.jsonl", rows)
    dataset = datasets.load(tmp_path / "tasks" / "grooves-beats.jsonl")
    cache.prepare(dataset, tmp_path / "cache", workers=1)
    found = judge.ask_moments(
        judge.Judgement(tmp_path, "valid"), measures.FRAMES[1], cache.Cache(tmp_path / "cache"), []
    )
    assert set(found.groups) == {"8", "9", "10", "11"}
    assert found.value() > 0.9


def test_a_root_without_the_benchmark_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"build\.py"):
        judge.judge(tmp_path, ["mel-stats"], "valid", tmp_path / "out")


def test_a_question_without_such_a_measure_is_refused():
    with pytest.raises(RequestError, match="no measure 'x'"):
        measures.measure("x", Task("one-of", ("a", "b")), np.zeros(2, int), np.zeros((2, 2)))
    assert Question("notes", "octave", ("accuracy",)).name == "notes-octave"

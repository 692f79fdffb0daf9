"""The open benchmark's pure parts, on data made here: no SoundFont, no network, no music21."""

import gzip
import itertools
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import check_leaks
import duplicate_pieces
import grooves
import groups
import judge
import measures
import notes
import numpy as np
import outcome
import predictions
import pretraining
import pytest
import recordings
import score_sources
import scores
import sound
import soundfile
import tracks
from measures import EncoderScore, Question
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


def row(path, group, split, **more):
    return {"path": path, "group": group, "split": split, **more}


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
    first, same, other = (
        groups.dice("a", number).integers(1000, size=4).tolist() for number in (1, 1, 2)
    )
    assert first == same != other


def test_a_manifest_with_a_group_on_two_sides_or_a_clip_twice_is_refused(tmp_path):
    rows = [row("a.ogg", "one", "train"), row("b.ogg", "one", "test")]
    with pytest.raises(RequestError, match="'one' is on the sides train and test"):
        groups.write_manifest(tmp_path / "x.jsonl", rows)
    assert not (tmp_path / "x.jsonl").exists()
    with pytest.raises(RequestError, match="1 rows name a clip that another names"):
        groups.require_split([row("a.ogg", "one", "train")] * 2, "x.jsonl")


def test_a_manifest_is_read_by_the_package_with_targets_sides_and_groups(tmp_path, write_wav):
    for name in "ab":
        write_wav(f"clips/{name}.wav", np.full(2205, 0.1, np.float32))
    one = row("clips/a.wav", "g", "train", target=["brass", "reed"])
    other = row("clips/b.wav", "h", "test", target=["reed"])
    groups.write_manifest(tmp_path / "tasks" / "x.jsonl", [one, other])
    found = datasets.load(tmp_path / "tasks" / "x.jsonl")
    assert found.task == Task("many-of", ("brass", "reed"))
    assert [(clip.split, clip.group) for clip in found.clips] == [("train", "g"), ("test", "h")]
    assert all(Path(clip.path).exists() for clip in found.clips)


# --- what is never touched ---


RESERVED = "nexuiz-music wesnoth-1.16-music supertux-data_0.6.3-1_all.deb TimGM6mb.sf2"


@pytest.mark.parametrize("name", [*RESERVED.split(), "timgm6mb-soundfont", "opl3-soundfont"])
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
    judged = [
        row(f"clips/{name}.ogg", f"recordings/x/{name}", side, source=f"deb/x/{name}.ogg")
        | {"target": name, "progression": f"p{name}"}
        for name, side in (("a", "train"), ("b", "test"))
    ]
    groups.write_manifest(tmp_path / "tasks" / "recordings-retrieval.jsonl", judged)
    both = (pretraining_row, recorded_row or pretraining_row)
    for name, listed in zip(pretraining.NAMES, both, strict=True):
        (tmp_path / name).write_text(json.dumps(listed) + "\n")
    return tmp_path


CLEAN = {
    "path": "pretraining/recordings/x/a-00.ogg",
    "group": "recordings/x/a",
    "source": "deb/x/a.ogg",
}
RESERVED_PIECE = next(name for name in map(str, range(100)) if groups.reserved_piece(name))
SHOWN = "/".join(["deb", *sorted(recordings.demo_files())[0]])


def test_pre_training_on_training_side_groups_passes_the_check(tmp_path):
    assert pretraining.check(benchmark(tmp_path, CLEAN)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": "recordings/x/b"}, "shares 'recordings/x/b'"),
        ({"source": "deb/x/b.ogg"}, "shares 'deb/x/b.ogg'"),
        ({"progression": "pb"}, "another side"),
        ({"soundfont": "sf_GMbank"}, "another side"),
        ({"source": "deb/nexuiz-music/a.ogg"}, "reserved"),
        ({"source": "work/mixed/nexuiz-music/a.flac"}, "reserved"),
        ({"source": SHOWN}, "demo"),
        ({"group": f"scores/{RESERVED_PIECE}", "kind": "scores"}, "reserved"),
    ],
)
def test_pre_training_that_shares_anything_with_the_judged_sides_is_refused(tmp_path, change, says):
    with pytest.raises(RequestError, match=says):
        pretraining.check(benchmark(tmp_path, CLEAN, CLEAN | change))


def tune(seed, *, key=0, slower=1.0, notes=40):
    """A melody drawn by chance: rows [start, length, pitch, part]."""
    generator = np.random.default_rng(seed)
    lengths_s = slower * generator.choice([0.5, 1.0, 1.5], notes)
    starts_s = np.concatenate([[0.0], np.cumsum(lengths_s)[:-1]])
    pitches = key + generator.integers(60, 72, notes)
    melody = zip(starts_s.tolist(), lengths_s.tolist(), pitches.tolist(), strict=True)
    return [[*note, 0] for note in melody]


def in_parts(*melodies):
    return sorted([*note[:3], part] for part, melody in enumerate(melodies) for note in melody)


def test_the_same_music_in_another_key_and_tempo_is_found_and_a_shared_melody_alone_is_not():
    one = in_parts(*map(tune, (1, 2, 3, 4)))
    slower = in_parts(*(tune(seed, key=5, slower=2.0) for seed in (1, 2, 3, 4)))
    assert duplicate_pieces.figures(one) == duplicate_pieces.figures(slower)
    notes = {
        "first": one,
        "edition": in_parts(*(tune(seed, key=-3) for seed in (1, 2, 3, 4))),
        "setting": in_parts(*map(tune, (1, 7, 8, 9))),
    }
    pieces = [piece(group=group, notes=each) for group, each in notes.items()]
    assert list(duplicate_pieces.duplicates(pieces)) == [(0, 1)]
    assert (
        list(duplicate_pieces.duplicates([each | {"group": "one mass"} for each in pieces])) == []
    )


def test_a_piece_that_trains_or_is_judged_elsewhere_under_another_name_is_not_judged():
    sides = {
        "heard": ("train", 1),
        "heard-too": ("train", 1),
        "again": ("test", 1),
        "valid": ("valid", 2),
        "late": ("test", 2),
        "alone": ("test", 3),
    }
    dealt = [
        (piece(group=name, id=name, notes=tune(seed)), side) for name, (side, seed) in sides.items()
    ]
    kept = [each["group"] for each, _ in duplicate_pieces.without_duplicates(dealt[::-1])]
    assert kept[::-1] == ["heard", "heard-too", "valid", "alone"]


@pytest.mark.parametrize(
    ("judged", "says"), [(1, "heard#1 and asked#1 are the same music"), (2, "")]
)
def test_scores_that_are_judged_under_another_name_may_not_be_heard(
    tmp_path, monkeypatch, judged, says
):
    heard, asked = (
        piece(group=f"{name}#1", id=f"{name}#1", notes=tune(seed))
        for name, seed in (("heard", 1), ("asked", judged))
    )
    monkeypatch.setattr(scores, "dealt", lambda root: [(heard, "train"), (asked, "test")])
    listed = {"path": "pretraining/scores/heard#1-0.ogg", "group": "scores/heard#1"}
    root = benchmark(tmp_path, listed | {"kind": "scores"})
    rows = [row("clips/scores/asked#1.ogg", "scores/asked#1", "test", target="a")]
    groups.write_manifest(tmp_path / "tasks" / "scores-mode.jsonl", rows)
    if says:
        with pytest.raises(RequestError, match=says):
            pretraining.check(root)
    else:
        assert pretraining.check(root) == 2


def track(number, *, source="", group="", seconds=100.0):
    inside = f"music/{number:02d}.ogg"
    source, group = source or f"deb/game/{inside}", group or f"recordings/game/{number:02d}"
    words = ("game", inside, group, "somebody", "t", "CC0")
    return tracks.Track(source, *words, seconds, 44_100, 2, 128.0, "ogg")


def test_tracks_of_the_demo_test_a_fifth_of_the_others_validates_and_only_the_rest_is_heard():
    _, package, inside = SHOWN.split("/", 2)
    shown = replace(
        track(0, source=SHOWN, group="recordings/shown"), package=package, inside=inside
    )
    every = [shown, *map(track, range(20))]
    where = recordings.sides(every)
    assert where["recordings/shown"] == "test"
    assert sorted(where.values()).count("valid") == 4
    heard = {row["group"] for _, row in pretraining.draw_recordings(every)}
    assert heard == {group for group, side in where.items() if side == "train"}


def test_a_track_that_stands_under_two_names_is_neither_heard_nor_asked():
    copies = [*recordings.COPIES, *recordings.COPIES.values()]
    once = [track(number) for number in range(4)]
    every = once + [track(50 + number, group=group) for number, group in enumerate(copies)]
    for found in (
        recordings.draw(every),
        pretraining.draw_recordings(every),
        pretraining.draw_recordings([], every),
    ):
        assert found
        assert {row["group"] for _, row in found} <= {one.group for one in once}


@pytest.mark.parametrize("hidden", [True, False])
def test_judged_music_under_another_name_is_found_by_its_sound(
    tmp_path, monkeypatch, noise, hidden
):
    load = datasets.load
    places = {"demo": tmp_path / "demo"}
    monkeypatch.setattr(datasets, "load", lambda source: load(places.get(source, source)))
    names = ("demo/a.wav", "asked.wav", "tasks/clip.wav", "heard/other.wav", "heard/b.wav")
    sounds = {name: noise(12.0, seed=seed) for seed, name in enumerate(names)}
    if hidden:
        sounds["heard/b.wav"] = 0.5 * sounds["tasks/clip.wav"]
    for name, samples in sounds.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        audio.save(tmp_path / name, samples)
    rows = [row("clip.wav", "g", "test", target="x"), row("../asked.wav", "h", "train", target="y")]
    listed = "".join(json.dumps(one) + "\n" for one in rows)
    (tmp_path / "tasks" / "recordings-retrieval.jsonl").write_text(listed)
    cache.prepare(load(tmp_path / "heard"), tmp_path / "cache-all", workers=1)
    if hidden:
        with pytest.raises(RequestError, match=r"b\.wav = clip\.wav.*COPIES"):
            check_leaks.require_no_leaks(tmp_path, 1)
    else:
        assert check_leaks.require_no_leaks(tmp_path, 1) == 2


def test_clips_of_a_track_never_overlap_and_stay_away_from_its_ends():
    cuts = [cut for cut, _ in recordings.draw([track(number, seconds=77.0) for number in range(4)])]
    for source in {cut.source for cut in cuts}:
        starts_s = [cut.starts_s for cut in cuts if cut.source == source]
        places = sorted((min(starts), max(starts)) for starts in starts_s)
        assert len(places) == 4
        assert places[0][0] >= 2.0
        assert places[-1][1] + 10.0 <= 75.0
        assert all(after[0] >= before[1] + 10.0 for before, after in itertools.pairwise(places))


def test_long_tracks_are_cut_for_pre_training_and_a_short_rest_is_dropped():
    assert pretraining.stretches(79.0) == [(0.0, 30.0), (30.0, 60.0), (60.0, 79.0)]
    assert pretraining.stretches(70.0) == [(0.0, 30.0), (30.0, 60.0)]


def test_variants_of_a_song_are_one_group_and_an_artist_has_one_spelling():
    package = "supertuxkart-data"
    assert tracks.song(package, "Oasis_fast") == tracks.song(package, "oasis")
    for name in ("Gerd (elysis) Raudenbusch", "www.elysis.de"):
        assert tracks.one_spelling(name) == "elysis"
    assert tracks.one_spelling("Somebody <me@example.org>") == "Somebody"


def test_a_copyright_file_means_a_moved_file_by_the_end_of_its_path():
    assert tracks.matches("data/music/a.ogg", "usr/share/games/x/data/music/a.ogg")
    assert tracks.matches("music/*", "usr/share/x/music/b.ogg")
    assert not tracks.matches("music/a.ogg", "usr/share/x/music/b.ogg")
    assert not tracks.matches("debian/*", "usr/share/debian/b.ogg")


def test_only_labels_with_tracks_on_every_side_are_told_apart():
    rows = [
        row(f"{name}{side}{number}", f"{name}{side}{number}", side, artist=name)
        for name, sides in (("full", ("train", "valid", "test")), ("untested", ("train", "valid")))
        for side in sides
        for number in range(3)
    ]
    assert {row["artist"] for row in recordings.with_enough_groups(rows, "artist")} == {"full"}


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
    assert (facts.samplerate, facts.channels, facts.frames) == (22_050, 1, 22_050)
    assert (facts.format, facts.subtype) == ("OGG", "VORBIS")


def test_a_recording_is_cut_where_it_is_not_silent_and_not_cut_again(tmp_path, tone, write_wav):
    write_wav("long.wav", np.concatenate([np.zeros(22_050 * 12, np.float32), tone(seconds=12.0)]))
    starts = {"x": (1.0, 13.0), "silent": (0.0, 1.0), "y": (12.5,)}
    cuts = tuple(
        recordings.Cut(f"clips/{name}.ogg", "long.wav", starts_s, 10.0, -20.0)
        for name, starts_s in starts.items()
    )
    recordings.cut_out(tmp_path, recordings.Cuts("clips/y.ogg", cuts))
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["x.ogg", "y.ogg"]
    stamp = (tmp_path / "clips/x.ogg").stat().st_mtime_ns
    recordings.cut_out(tmp_path, recordings.Cuts("clips/y.ogg", cuts))
    assert (tmp_path / "clips/x.ogg").stat().st_mtime_ns == stamp


# --- scores ---


PITCHES = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 67, 64, 60, 55, 60]


def piece(collection="ryan-fiddle", **more):
    notes = [[float(number), 1.0, pitch, 0] for number, pitch in enumerate(PITCHES)]
    names = {"collection": collection, "group": "a#1", "id": f"{collection}/1", "parts": 1}
    facts = {"quarters": 16.0, "onsets": 16, "notes": notes, "metres": [[0.0, "4/4"]]}
    return names | facts | {"keys": [[0.0, 0, 0, "major"]]} | more


def labels(of, seconds=10.0):
    sounding, place = scores.perform(of, "clips/a.ogg", sound.SEEN, seconds)
    return scores.describe(of, sounding, place), place


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
        moved = {pitch + int(place["transposed"]) for pitch in PITCHES}
        assert {note.pitch for note in sounding.notes} <= moved
    assert len(seen) > 8


def test_the_same_path_is_performed_alike_whatever_its_collection_so_timbre_tells_no_label():
    one, _ = scores.perform(piece("ryan-fiddle"), "clips/a.ogg", sound.SEEN, 10.0)
    two, _ = scores.perform(piece("essen-china"), "clips/a.ogg", sound.SEEN, 10.0)
    assert one == two


def test_a_tuba_plays_octaves_lower_what_it_cannot_reach():
    assert [scores.playable(pitch, 58) for pitch in (66, 67, 90)] == [66, 55, 66]
    assert scores.playable(90, 0) == 90


def test_a_short_piece_begins_again_and_its_onsets_are_those_within_the_clip():
    label, place = labels(piece(), 30.0)
    assert label["looped"] == 1
    assert abs(label["onsets"] - 30.0 * 16 / place["length_s"]) <= 2


def test_a_chord_with_jitter_is_one_onset():
    assert scores.moments([0.51, 0.5, 0.505, 1.0, 1.3]) == [0.5, 1.0, 1.3]


@pytest.mark.parametrize(
    "more", [{"keys": [[0.0, 0, 0, "dorian"]]}, {"keys": [[0.0, 6, 6, "major"]]}, {"keys": []}]
)
def test_a_key_that_is_modal_not_confirmed_by_the_notes_or_not_notated_is_no_label(more):
    label, _ = labels(piece(**more))
    assert (label["key"], label["mode"], label["tonic"]) == ("", "", "")


def test_a_metre_that_changes_is_no_label():
    assert labels(piece(metres=[[0.0, "4/4"], [0.001, "3/4"]]))[0]["metre"] == ""
    assert labels(piece())[0]["metre"] == "4/4"


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
    counts = {"a": {"major": 20, "minor": 6}, "b": {"major": 9, "minor": 2}}
    rows = [
        row(name, name, side, place=place, mode=label)
        for place, modes in counts.items()
        for side in ("train", "valid")
        for label, count in modes.items()
        for name in (f"{place}{side}{label}{number}" for number in range(count))
    ]
    kept = groups.balanced(rows, "mode", "place")
    assert {row["place"] for row in kept} == {"a"}  # in b minor is too rare, which leaves one label
    sides = Counter((row["split"], row["mode"]) for row in kept)
    assert sides == {(side, mode): 6 for side in ("train", "valid") for mode in ("major", "minor")}


# --- notes ---


def test_validation_hears_presets_that_training_did_not_and_the_test_another_soundfont():
    train, valid = notes.presets("train"), notes.presets("valid")
    for family, programs in notes.FAMILIES.items():
        assert train[family]
        assert valid[family]
        assert sorted(train[family] + valid[family]) == sorted(programs)
    drawn = {(row["split"] == "test", each.soundfont) for each, row in notes.draw_singles()}
    assert drawn == {(True, sound.UNSEEN), (False, sound.SEEN)}


def test_labels_of_notes_and_chords_are_those_of_the_pitches_played():
    for each, row in notes.draw_singles()[::97]:
        (note,) = each.notes
        assert row["pitch_class"] == scores.NAMES[note.pitch % 12]
        assert row["octave"] == f"octave {note.pitch // 12 - 1}"
        assert each.programs[0] in notes.FAMILIES[row["family"]]
    for each, row in notes.draw_chords()[::41]:
        pitches, degrees = {note.pitch % 12 for note in each.notes}, notes.QUALITIES[row["quality"]]
        chords = [{(root + degree) % 12 for degree in degrees} for root in range(12)]
        assert pitches in chords
    family_of = {program: name for name, row in notes.FAMILIES.items() for program in row}
    for each, row in notes.draw_mixtures()[::53]:
        assert [family_of[program] for program in each.programs.values()] == row["families"]
        assert {note.channel for note in each.notes} == set(each.programs)


# --- grooves ---

FOURS = (*grooves.STYLED, *(f"four{number}" for number in range(12)))
STYLES = {name: (name.title(), 4) for name in FOURS}
STYLES |= {f"three{number}": (f"T{number}", 3) for number in range(9)}


def test_progressions_and_styles_keep_to_one_side():
    for drawn in (grooves.draw_styled(STYLES), grooves.draw_others(STYLES)):
        for key in ("group", "progression"):
            sides = {}
            for _, row in drawn:
                assert sides.setdefault(row[key], row["split"]) == row["split"]
    assert {row["style"] for _, row in grooves.draw_styled(STYLES)} == set(grooves.STYLED)


def test_metre_has_as_many_in_three_as_in_four_on_every_side():
    rows = grooves.metred([row for _, row in grooves.draw_others(STYLES)])
    counts = Counter((row["split"], row["beats"]) for row in rows)
    for side in ("train", "valid", "test"):
        assert counts[side, 3] == counts[side, 4] > 0


def test_chords_and_beats_of_a_clip_count_from_its_start():
    c, f = (("C", "maj"),), (("F", "maj"),)
    bars = (c, (("G", "7"), ("A", "min")), (("C", "maj7"),), f, f, c, c)
    groove = grooves.Groove("x.ogg", sound.SEEN, "Swing", 4, 120.0, bars, 3.0)  # a bar lasts 2 s
    chords = [[0.0, 1.0, "A:min"], [1.0, 3.0, "C:maj7"], [3.0, 7.0, "F:maj"], [7.0, 10.0, "C:maj"]]
    assert grooves.chord_rows(groove) == chords
    beats = grooves.beat_rows(groove)
    assert beats[:4] == [[0.0, 3], [0.5, 4], [1.0, 1], [1.5, 2]]
    assert len(beats) == 20
    chart = ["RndSeed 7", "Tempo 120", "Groove Swing", "1 C", "2 G7 / Am /"]
    assert grooves.chart(groove, 7).splitlines()[:5] == chart


def test_tempi_are_whole_numbers_since_mma_drops_what_is_behind_the_point():
    assert {groove.tempo_bpm % 1 for groove, _ in grooves.draw_others(STYLES)} == {0.0}


def test_who_names_the_class_of_a_tempo_is_within_four_per_cent():
    for bpm in np.linspace(60, 180, 97):
        assert abs(float(grooves.tempo_class(bpm).split()[0]) / bpm - 1) <= measures.TOLERANCE


def test_notes_of_a_midi_file_are_paired_and_one_without_an_end_lasts_two_seconds():
    class NoteOn(SimpleNamespace):
        pass

    class ProgramChange(SimpleNamespace):
        pass

    events = [
        (0.0, ProgramChange(program=33)),
        (0.1, NoteOn(key=40, velocity=90)),
        (0.5, NoteOn(key=40, velocity=0)),
        (0.6, NoteOn(key=43, velocity=80)),
    ]
    played = [SimpleNamespace(t=time, action=action, channel=2) for time, action in events]
    assert grooves.pair_notes(played) == [(2, 0.1, 0.5, 33, 40, 90), (2, 0.6, 2.6, 33, 43, 80)]


# --- measures ---


def test_average_precision_and_r2_are_those_of_scikit_learn_with_weights_as_repetitions():
    generator = np.random.default_rng(0)
    truth = (generator.random((60, 4)) < 0.4).astype(float)
    said = np.round(generator.random((60, 4)), 1)  # many ties
    chosen = generator.integers(0, 60, 60)
    weights = np.stack([np.ones(60), np.bincount(chosen, minlength=60)])
    precision = measures.average_precision(truth, said)(weights)
    explained = measures.r2(truth[:, 0], said[:, 0])(weights)
    for number, rows in enumerate((np.arange(60), chosen)):
        expected = average_precision_score(truth[rows], said[rows])
        assert precision[number] == pytest.approx(expected)
        assert explained[number] == pytest.approx(r2_score(truth[rows, 0], said[rows, 0]))


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
    drawn = (generator.normal(size=(60, 8)) for _ in range(200))
    found = np.mean([measures.hits(features, names, 5).mean() for features in drawn])
    assert measures.chance_of_hit(names, 5) == pytest.approx(found, abs=0.01)


def test_scores_are_placed_between_chance_and_ceiling():
    placed = measures.normalise(np.array([0.2, 0.6, 1.0]), 0.2)
    assert placed.tolist() == pytest.approx([0.0, 0.5, 1.0])
    with pytest.raises(RequestError, match="single label"):
        measures.normalise(np.array([1.0]), 1.0)


def answers(level, seed):
    """An encoder that is right in a share of the clips, on every question of the endpoint."""
    names = tuple(f"group {index // 3}" for index in range(120))
    given = []
    for number, question in enumerate(measures.QUESTIONS):
        right = (np.random.default_rng(seed + number).random(120) < level).astype(float)
        given += answered(question, names, right)
    return given


def answered(question, names, right):
    runs = (measures.mean_of(right),)
    return [EncoderScore(question, name, names, 0.25, runs) for name in question.measures]


def summarise(given, *notes):
    return outcome.summarise(given, "valid", *notes)


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
        given += answered(question, ("a", "b"), np.full(2, level))
    found = {row["family"]: row["value"] for row in summarise({"it": given}).families}
    expected = {"scores": 0.0, "grooves": 0.0, "notes": 0.0, "recordings": 1.0, "endpoint": 0.25}
    assert found == pytest.approx(expected)


def test_a_better_encoder_differs_from_the_first_and_an_equal_one_does_not():
    good = answers(0.8, 0)
    found = summarise({"good": good, "equal": good, "bad": answers(0.5, 100)})
    equal, bad = [row for row in found.differences if row["family"] == "endpoint"]
    assert len(found.differences) == 2 * (1 + len(measures.FAMILIES))
    assert (equal["value"], equal["low"], equal["high"]) == (0.0, 0.0, 0.0)
    assert bad["low"] > 0.2
    assert bad["p_holm"] < 0.01 < equal["p_holm"]


def test_columns_are_compared_one_by_one_and_holm_counts_all_of_them():
    good = answers(0.9, 0)
    worse = [
        replace(each, runs=(measures.mean_of(np.zeros(120)),))
        if each.question.task == "mode"
        else each
        for each in good
    ]
    found = measures.column_differences({"good": good, "equal": good, "worse": worse})
    columns = sum(len(question.measures) for question in measures.QUESTIONS)
    assert len(found) == 2 * columns
    sure = {(row["second"], row["task"]) for row in found if row["p_holm"] < 0.05}
    assert sure == {("worse", "mode")}
    [mode] = [row for row in found if row["p_holm"] < 0.05]
    smallest = 2 / (measures.COLUMN_SEEDS * measures.DRAWS + 1)
    assert mode["p_holm"] == pytest.approx(2 * columns * smallest)
    table = replace(summarise({"good": good, "worse": worse}), column_differences=found).markdown()
    assert f"| scores mode (accuracy) | +0.0 [+0.0, +0.0] | {100 * mode['value']:+.1f} [" in table
    assert table.count("]* |") == 1


def test_an_encoder_that_did_not_answer_everything_has_no_endpoint():
    whole = answers(0.8, 0)
    part = [each for each in whole if each.question.family != "notes"]
    found = summarise({"whole": whole, "part": part})
    assert [row["encoder"] for row in found.families if row["family"] == "endpoint"] == ["whole"]
    assert {row["family"] for row in found.differences} == {"scores", "grooves", "recordings"}


def test_a_row_of_several_runs_is_their_mean_and_says_what_each_has():
    good, bad = answers(0.8, 0), answers(0.4, 0)
    both = [replace(one, runs=(*one.runs, *two.runs)) for one, two in zip(good, bad, strict=True)]
    found = summarise({"both": both, "good": good, "bad": bad})
    value = {row["encoder"]: row["value"] for row in found.families if row["family"] == "endpoint"}
    assert value["both"] == pytest.approx((value["good"] + value["bad"]) / 2)
    ends = f"{100 * value['good']:.1f}, {100 * value['bad']:.1f}"
    assert found.notes == [f"both is the mean of 2 runs; endpoints one by one: {ends}."]


@pytest.mark.parametrize(
    ("row", "name", "specs"),
    [
        ("mel-stats", "mel-stats", ["mel-stats"]),
        ("features:some+where/%FAMILY%", "features:some+where/%FAMILY%", None),
        ("mine=runs/0/model+runs/1/model", "mine", ["runs/0/model", "runs/1/model"]),
        ("runs/lr=1e-3", "runs/lr=1e-3", None),
        ("random:runs/lr=1e-3", "random:runs/lr=1e-3", None),
        ("random weights=random:runs", "random weights", ["random:runs"]),
        ("mine=runs/lr=1e-3", "mine", ["runs/lr=1e-3"]),
    ],
)
def test_rows_are_named_and_hold_several_runs(row, name, specs, tmp_path, monkeypatch):
    (tmp_path / "runs/lr=1e-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert judge.read_row(row) == (name, specs or [row])


def test_a_row_that_is_no_encoder_is_named(small_benchmark, tmp_path):
    said = r"row mine: 'nothing' is no encoder.*'=' ends a row's name"
    with pytest.raises(RequestError, match=said):
        judge.evaluate(
            small_benchmark, ["mine=nothing"], "valid", tmp_path / "out", families=["notes"]
        )


def test_a_draw_of_one_truth_alone_has_no_r2():
    weights = np.array([[1.0, 1, 1], [2, 1, 0]])
    found = measures.r2(np.array([0.3, 0.3, 0.7]), np.array([0.2, 0.5, 0.7]))(weights)
    assert np.isfinite(found).tolist() == [True, False]


def test_two_rows_of_one_name_are_refused(tmp_path):
    with pytest.raises(RequestError, match="two rows have one name"):
        judge.evaluate(tmp_path, ["mine=mel-stats", "mine=mfcc"], "valid", tmp_path / "out")


def test_tables_and_figure_hold_every_encoder_and_every_measure(tmp_path):
    question, runs = measures.DIAGNOSTICS[0], (measures.mean_of(np.ones(2)),)
    diagnosed = EncoderScore(question, "accuracy", ("a", "b"), 0.5, runs)
    given = {"good": [*answers(0.8, 0), diagnosed], "bad": answers(0.5, 50)}
    outcome.write_outcome(summarise({**given, judge.METADATA: [diagnosed]}, ["A note."]), tmp_path)
    table = (tmp_path / "table.md").read_text()
    for name in ("chance", "good", "bad", judge.METADATA):
        assert f"| {name} |" in table
    for each in given["bad"]:
        assert f"| {each.question.task} ({each.measure}) |" in table
    assert "A note." in table
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(given["bad"]) + 2


# --- judging, on sounds made here ---


@pytest.fixture
def small_benchmark(tmp_path, tone, write_wav):
    """A root whose every task is about tones of two pitches; the test clip is broken on purpose."""
    facts = {"rate": 44_100, "channels": 1, "kbps": 99.0, "codec": "ogg"}
    clips = [row("clips/test.wav", "test", "test", low=0, **facts)]
    for side, count in (("train", 24), ("valid", 12)):
        for number in range(count):
            hz = (220.0 if number % 2 else 880.0) * (1 + 0.002 * number)
            path = f"clips/{side}{number:02d}.wav"
            write_wav(path, tone(hz, seconds=1.0, level=0.1 + 0.02 * number))
            clips.append(row(path, f"{side}{number // 2}", side, low=number % 2, **facts))
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
        rows = [clip | {"target": names[clip["low"]]} | more for clip in clips]
        groups.write_manifest(tmp_path / "tasks" / f"{question.name}.jsonl", rows)
    return tmp_path


def test_judging_asks_the_validation_side_alone_and_fills_every_column(
    small_benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr(measures, "COLUMN_SEEDS", 1)
    generator = np.random.default_rng(0)
    for family in measures.FAMILIES:  # somebody else's features, which say nothing
        folder = tmp_path / "others" / family / "clips"
        folder.mkdir(parents=True)
        for path in (small_benchmark / "clips").glob("*[0-9].wav"):
            np.save(folder / f"{path.stem}.npy", generator.random(4, np.float32))
    others = f"features:{tmp_path}/others/%FAMILY%"
    rows = ["mel-stats", f"others={others}+{others}"]
    found = judge.evaluate(small_benchmark, rows, "valid", tmp_path / "out")
    assert {row["n"] for row in found.scores} == {12}
    mel = {
        (row["family"], row["task"], row["measure"]): row["value"]
        for row in found.scores
        if row["encoder"] == "mel-stats"
    }
    questions = (*measures.QUESTIONS, *measures.DIAGNOSTICS)
    assert set(mel) == {(one.family, one.task, name) for one in questions for name in one.measures}
    assert mel["notes", "octave", "accuracy"] > 0.75
    blind = [row for row in found.scores if row["encoder"] == judge.METADATA]
    values = {(row["task"], row["value"]) for row in blind}
    assert values == {("soundtrack", 0.5), ("artist", 0.5)}  # the same for every file
    assert {row["second"] for row in found.differences} == {"others"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["side"] == "valid"
    assert results["runs"] == {"mel-stats": ["mel-stats"], "others": [others, others]}
    stored = tmp_path / "out" / "predictions.npz"
    assert json.loads(json.dumps(asdict(predictions.outcome_of(stored)))) == results
    assert predictions.main([str(stored), "--out", str(tmp_path / "again")]) == 0
    tables = [(tmp_path / name / "table.md").read_text() for name in ("out", "again")]
    assert tables[0] == tables[1]


def test_a_file_without_predictions_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for path in (tmp_path / "other.npz", tmp_path / "nothing.npz"):
        with pytest.raises(RequestError, match="holds no predictions"):
            predictions.read(path)


def test_what_is_known_of_training_clips_serves_both_sides(small_benchmark, tone, write_wav):
    write_wav("clips/test.wav", tone(440.0, seconds=1.0))
    heard = []

    def encode(data, indices, **more):
        heard.append([data.clips[index].id for index in indices])
        return np.arange(len(indices), dtype=np.float32)[:, None]

    encoder = Encoder("counted", encode, identity="counted")
    for side, new in (("valid", 36), ("test", 1), ("test", 0)):
        benchmark_side = judge.BenchmarkSide(small_benchmark, side)
        table = judge.features(
            benchmark_side, encoder, "notes", benchmark_side.cache("notes", workers=1)
        )
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
        path, side = f"clips/{number}.wav", "train" if number < 8 else "valid"
        write_wav(path, waveform)
        rows.append(row(path, str(number), side, target=beats, metric="beats"))
    groups.write_manifest(tmp_path / "tasks" / "grooves-beats.jsonl", rows)
    cache.prepare(
        datasets.load(tmp_path / "tasks" / "grooves-beats.jsonl"), tmp_path / "c", workers=1
    )
    benchmark_side, moments = judge.BenchmarkSide(tmp_path, "valid"), cache.Cache(tmp_path / "c")
    found = judge.evaluate_frames(benchmark_side, measures.FRAMES[1], moments, [])
    assert set(found.groups) == {"8", "9", "10", "11"}
    assert found.value() > 0.9


def test_a_root_without_the_benchmark_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"build\.py"):
        judge.evaluate(tmp_path, ["mel-stats"], "valid", tmp_path / "out")


def test_a_question_without_such_a_measure_is_refused():
    with pytest.raises(RequestError, match="no measure 'x'"):
        measures.measure("x", Task("one-of", ("a", "b")), np.zeros(2, int), np.zeros((2, 2)))
    assert Question("notes", "octave", ("accuracy",)).name == "notes-octave"

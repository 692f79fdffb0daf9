"""Rendered music whose notes are known, by a player of sine waves: no SoundFont, no network."""

import itertools
import json
from collections import Counter

import composer
import effects
import grooves
import groups
import notes
import numpy as np
import pretraining
import pytest
import soundfile
import synthetic
from groups import dice
from scores import NAMES
from sound import DRUMS, PRE_ROLL_S, SEEN, SYNTH_RATE, UNSEEN, Note, Sound

from patchifier.config import RequestError

STYLES = {name: (name.title(), 4) for name in grooves.STYLED}
STYLES |= {f"four{number}": (f"F{number}", 4) for number in range(12)}
STYLES |= {f"three{number}": (f"T{number}", 3) for number in range(9)}
FORBIDDEN = (
    UNSEEN, "timgm6mb-soundfont/usr/share/sounds/sf2/TimGM6mb.sf2", "x/TimGM6mb.sf2", "opl3-soundfont/usr/share/opl3.sf2",
    "x/opl3_gm.sf2", "csound-soundfont/sf_GMbank.sf2",
)  # fmt: skip


def task(path, soundfont=SEEN, given=None):
    return synthetic.Task(path, soundfont, "a group", given, {})


def drawn(kind, count):
    """Sounds and labels of the first clips of a kind that needs nothing from the root."""
    return [
        synthetic.KINDS[kind](None, task(path, synthetic.font_of(path)))
        for path in synthetic.paths(kind, count)
    ]


class Sines:
    """Plays every note as a sine wave of its pitch."""

    def play(self, sound):
        waveform = np.zeros(int((sound.seconds + PRE_ROLL_S) * SYNTH_RATE), np.float32)
        for note in sound.notes:
            first = max(0, int((note.start_s + PRE_ROLL_S) * SYNTH_RATE))
            last = min(len(waveform), int((note.end_s + PRE_ROLL_S) * SYNTH_RATE))
            time_s = np.arange(last - first) / SYNTH_RATE
            frequency_hz = 440 * 2 ** ((note.pitch - 69) / 12)
            waveform[first:last] += 0.1 * np.sin(2 * np.pi * frequency_hz * time_s)
        return waveform


@pytest.fixture
def sines(monkeypatch):
    monkeypatch.setattr(synthetic.sound, "player", lambda root, soundfont: Sines())


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(effects, "draw", lambda generator: effects.Effects())


# --- what sounds is what is labelled ---


@pytest.mark.parametrize("number", range(3))
def test_the_strongest_pitch_of_a_clip_is_one_that_its_labels_have_there(
    tmp_path, sines, plain, number
):
    path = synthetic.paths("phrases", 3)[number]
    synthetic.make(tmp_path, task(path))
    waveform, rate = soundfile.read(tmp_path / path)
    labels = json.loads((tmp_path / "labels" / path).with_suffix(".json").read_text())
    assert len(waveform) == 30 * rate
    checked = 0
    for start in np.arange(0.5, 29.0, 0.5):
        held = {
            row[2] for row in labels["notes"] if row[0] < start - 0.02 and row[1] > start + 0.27
        }
        around = {row[2] for row in labels["notes"] if row[0] < start + 0.25 and row[1] > start}
        if not held:
            continue
        part = waveform[int(start * rate) : int((start + 0.25) * rate)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 16))
        strongest_hz = np.argmax(spectrum) * rate / (1 << 16)
        heard = 69 + 12 * np.log2(strongest_hz / 440)
        assert min(abs(heard - pitch) for pitch in around) < 0.6
        checked += 1
    assert checked > 10


def test_a_sound_is_where_its_labels_put_it_whatever_the_effects(tmp_path, sines, monkeypatch):
    struck = [Note(second, second + 0.2, 60, 90) for second in (1.0, 11.0, 21.0)]
    monkeypatch.setitem(
        synthetic.KINDS,
        "phrases",
        lambda root, task: synthetic.labelled(task, {0: 0}, struck, {}, dice("a sound")),
    )
    loud = effects.Effects(
        drive=2.0, reverb_s=0.5, wet=0.3, bands=((500.0, 5.0, 1.0),), low_pass_hz=5000.0
    )
    monkeypatch.setattr(effects, "draw", lambda generator: loud)
    path = "synthetic/phrases/00000.ogg"
    synthetic.make(tmp_path, task(path))
    waveform, rate = soundfile.read(tmp_path / path)
    for note in struck:
        before = waveform[int((note.start_s - 0.5) * rate) : int((note.start_s - 0.02) * rate)]
        after = waveform[int(note.start_s * rate) : int((note.start_s + 0.05) * rate)]
        assert np.std(after) > 20 * np.std(before)


def test_a_chord_of_a_song_has_the_pitch_classes_that_its_pad_plays():
    found = 0
    for number in range(40):
        song, parts = composer.compose(dice("pads", number), 30.0)
        pads = [part for part in parts if part.role == "pad"]
        rows = composer.chord_rows(song, parts, 30.0)
        for start, end, name in rows if pads else []:
            root, quality = name.split(":")
            degrees = composer.DEGREES_OF[quality]
            expected = {(NAMES.index(root) + degree) % 12 for degree in degrees}
            soon = start + 0.05
            sounding = [note for note in pads[0].notes if note.start_s < soon < note.end_s]
            if sounding and end > soon:
                assert {note.pitch % 12 for note in sounding} == expected
                found += 1
    assert found > 50


def test_chords_and_beats_lie_in_the_clip_in_order():
    for _, labels in drawn("composed", 40):
        times = [time for time, _ in labels["beats"]]
        assert times == sorted(times)
        assert 0 <= times[0] < 60 / labels["bpm"] + 1e-3
        assert times[-1] < 30.0 <= times[-1] + 60 / labels["bpm"] + 1e-3
        assert {place for _, place in labels["beats"]} == set(range(1, labels["metre"] + 1))
        rows = labels.get("chords", [])
        assert all(row[0] < row[1] for row in rows)
        assert all(after[0] >= before[1] - 2e-3 for before, after in itertools.pairwise(rows))


def test_all_eight_qualities_all_metres_and_both_modes_come_up():
    labels = [label for _, label in drawn("composed", 150)]
    chords = Counter(row[2].split(":")[1] for label in labels for row in label.get("chords", []))
    assert set(chords) == {"maj", "min", "dim", "aug", "sus4", "maj7", "min7", "7"}
    assert {label["metre"] for label in labels} == {2, 3, 4, 6}
    assert {label["key"].split(":")[1] for label in labels if "key" in label} == {"maj", "min"}
    assert min(label["bpm"] for label in labels) < 65
    assert max(label["bpm"] for label in labels) > 160


def test_a_part_that_returns_in_the_form_plays_the_same_again():
    song, parts = next(
        (song, parts)
        for song, parts in (composer.compose(dice("again", each), 30.0) for each in range(100))
        if len(song.form) > 1 and song.form[0] == song.form[1] and parts[0].role == "melody"
    )
    drawn_notes = composer.play_melody(song, parts[0], dice("a melody"))
    section = song.section_bars * song.metre
    first, second = (
        [
            (round(beat - number * section, 6), length, pitch)
            for beat, length, pitch, _ in drawn_notes
            if number * section <= beat < (number + 1) * section
        ]
        for number in (0, 1)
    )
    assert first == second


def test_notes_are_cut_to_the_clip_and_drums_have_a_program_of_their_own():
    played = [
        Note(-1.0, 0.5, 60, 90),
        Note(29.5, 33.0, 62, 90),
        Note(5.0, 5.2, 38, 90, DRUMS),
        Note(40.0, 41.0, 64, 90),
        Note(-1.0, -0.5, 65, 90),
    ]
    _, labels = synthetic.labelled(task("a"), {0: 4, DRUMS: 16}, played, {"key": ""}, dice("a"))
    assert labels == {"notes": [[0.0, 0.5, 60, 4], [5.0, 5.2, 38, 128], [29.5, 30.0, 62, 4]]}


def test_a_note_ends_before_the_same_one_starts_again_and_unreachable_ones_move_by_octaves():
    played = [Note(0.0, 2.0, 60, 90), Note(1.0, 3.0, 60, 90), Note(1.01, 2.0, 60, 90)]
    settled = synthetic.settle(played, {0: 0}, 30.0)
    assert [(note.start_s, round(note.end_s, 3)) for note in settled] == [(0.0, 0.997), (1.0, 3.0)]
    assert synthetic.reach(100, 0) == 88
    assert synthetic.reach(70, 58) == 58
    assert synthetic.reach(12, 0) == 24


def test_chords_of_phrases_are_known_when_one_part_plays():
    for each, labels in drawn("phrases", 30):
        assert ("chords" in labels) == (len(each.programs) == 1)
        assert "beats" not in labels
        assert "key" not in labels
    assert synthetic.chord_name({0, 5, 9}) == "F:maj"
    assert synthetic.chord_name({0, 1}) == ""


def test_an_accompaniment_has_notes_beats_and_chords_of_thirty_seconds(monkeypatch):
    events = [(0, at / 2, at / 2 + 0.4, 0, 60, 80) for at in range(120)]
    events += [(DRUMS, at / 2, at / 2 + 0.1, 0, 36, 80) for at in range(120)]
    monkeypatch.setattr(grooves, "write_midi", lambda folder, text: events)
    muted = 0
    for one in synthetic.draw_grooves(STYLES, 30):
        each, labels = synthetic.accompany(synthetic.Path("none"), one)
        assert labels["metre"] == one.given.beats
        assert labels["bpm"] == one.given.tempo_bpm
        assert labels["beats"][-1][0] > 28.0
        assert labels["chords"][-1][1] == 30.0
        assert "key" not in labels
        assert {row[3] for row in labels["notes"]} - {128} == {each.programs[0]}
        muted += DRUMS not in each.programs
    assert 0 < muted < 15


def test_a_score_has_its_key_metre_and_speed_where_they_are_known():
    pitches = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60, 67, 64, 60, 55, 60]
    piece = {
        "collection": "ryan-fiddle", "group": "a#1", "id": "ryan-fiddle/1", "parts": 1, "quarters": 16.0, "onsets": 16,
        "notes": [[float(number), 1.0, pitch, 0] for number, pitch in enumerate(pitches)],
        "metres": [[0.0, "6/8"]], "keys": [[0.0, 0, 0, "major"]],
    }  # fmt: skip
    each, labels = synthetic.perform(None, task("synthetic/scores/0.ogg", given=piece))
    starts = [note.start_s for note in each.notes]
    quarter_s = np.median(np.diff(starts))
    assert labels["metre"] == 6
    assert labels["bpm"] == pytest.approx(120 / quarter_s, rel=0.02)
    assert labels["key"].endswith(":maj")
    modal = piece | {"keys": [], "metres": []}
    _, unknown = synthetic.perform(None, task("synthetic/scores/0.ogg", given=modal))
    assert set(unknown) == {"notes"}


# --- what may not be drawn ---


@pytest.mark.parametrize("soundfont", FORBIDDEN)
def test_a_clip_by_another_soundfont_is_refused_and_leaves_nothing(tmp_path, soundfont, sines):
    with pytest.raises(RequestError, match=r"may not train|reserved"):
        synthetic.make(tmp_path, task("synthetic/composed/00000.ogg", soundfont))
    assert list(tmp_path.iterdir()) == []


def test_presets_of_the_validation_side_never_play():
    kept = {program for programs in notes.presets("valid").values() for program in programs}
    for soundfont in synthetic.FONTS:
        assert not synthetic.allowed(soundfont) & kept
    for each, labels in (*drawn("composed", 60), *drawn("phrases", 60)):
        programs = {row[3] for row in labels["notes"]} - {128}
        assert programs <= synthetic.allowed(each.soundfont)
        assert each.programs.get(DRUMS, 0) in synthetic.KITS


def test_families_come_about_equally_often_and_effects_never():
    family_of = {
        program: family
        for family, programs in synthetic.presets(SEEN).items()
        for program in programs
    }
    drawn_programs = [
        synthetic.draw_program(SEEN, low, dice("family", number, low))
        for number in range(1000)
        for low in (False,) * 4 + (True,)
    ]
    assert max(drawn_programs) < 112
    assert not set(range(96, 104)) & set(drawn_programs)
    counted = Counter(family_of[program] for program in drawn_programs)
    shares = [counted[family] / len(drawn_programs) for family in notes.FAMILIES]
    assert 0.06 < min(shares) <= max(shares) < 0.11


def test_progressions_of_the_other_sides_are_never_drawn():
    pools = grooves.progressions()
    for one in synthetic.draw_grooves(STYLES, 60):
        assert one.facts["progression"] in pools["train"]
    judged = composer.judged_progressions()
    assert len(judged) > 100
    for number in range(300):
        chords = composer.draw_chords("maj", 8, "sevenths", dice("chords", number))
        assert tuple(chords) not in judged


def test_a_progression_of_another_side_is_drawn_again(monkeypatch):
    first = tuple(composer.draw_chords("maj", 8, "plain", dice("again")))
    monkeypatch.setattr(composer, "judged_progressions", lambda: frozenset({first}))
    assert tuple(composer.draw_chords("maj", 8, "plain", dice("again"))) != first


def test_styles_are_those_of_the_training_side():
    allowed = set(pretraining.training_styles(STYLES))
    assert {one.group.split("/")[1] for one in synthetic.draw_grooves(STYLES, 60)} <= allowed


# --- draws and lists ---


def test_a_path_gives_the_same_notes_twice_and_another_gives_others():
    for kind in ("composed", "phrases"):
        one, same = drawn(kind, 1)[0], drawn(kind, 2)[0]
        assert one == same
        assert drawn(kind, 2)[1][1]["notes"] != one[1]["notes"]


def test_more_clips_leave_the_first_ones_as_they_are():
    few, many = synthetic.draw_grooves(STYLES, 3), synthetic.draw_grooves(STYLES, 9)
    assert many[:3] == few
    assert sum(synthetic.counts(3000).values()) == 3000


def build(root, clips, monkeypatch):
    monkeypatch.setattr(
        synthetic, "SHARES", {"composed": 0.5, "phrases": 0.5, "grooves": 0, "scores": 0}
    )
    return synthetic.build(root, clips, 1, lambda title: lambda *given: None)


@pytest.fixture
def here(monkeypatch, sines):
    """Work in this process, where the player of sine waves is."""

    def render_all(root, tasks, workers, progress, work):
        for one in tasks:
            if not (root / one.path).exists():
                work(root, one)

    monkeypatch.setattr(synthetic.sound, "render_all", render_all)


def test_a_second_run_goes_on_and_the_lists_name_every_clip_once(tmp_path, monkeypatch, here):
    recorded = {
        "path": "pretraining/recordings/a.ogg",
        "group": "recordings/a",
        "kind": "recordings",
    }
    (tmp_path / pretraining.NAMES[1]).write_text(json.dumps(recorded) + "\n")
    assert build(tmp_path, 2, monkeypatch) == 2
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ogg")}
    assert build(tmp_path, 4, monkeypatch) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    alone, both = (groups.read_manifest(tmp_path / name) for name in synthetic.NAMES)
    assert both == [recorded, *alone]
    assert len({row["path"] for row in alone}) == len(alone) == 4
    for row in alone:
        assert (row["kind"], row["licence"], row["seconds"]) == ("synthetic", "rendered", 30.0)
        assert synthetic.label_path(tmp_path, row["path"]).exists()


def test_a_list_with_a_group_of_the_judged_sides_is_refused(tmp_path, monkeypatch, here):
    (tmp_path / pretraining.NAMES[1]).write_text("")
    judged = {"path": "a.ogg", "group": "synthetic/composed/00000", "split": "test", "target": "a"}
    groups.write_manifest(tmp_path / "tasks" / "x.jsonl", [judged])
    with pytest.raises(RequestError, match="shares"):
        build(tmp_path, 2, monkeypatch)


# --- levels and effects ---


def test_a_loud_preset_is_turned_down_to_the_quietest():
    class Uneven(Sines):
        def play(self, sound):
            return super().play(sound) * (10.0 if 19 in sound.programs.values() else 1.0)

    sound = Sound("a", "uneven", {0: 19, 1: 0}, [], 30.0, 0.0, -20.0)
    volumes = synthetic.draw_volumes(Uneven(), sound, dice("volumes"))
    cuts_db = {channel: -60 * np.log10(volume / 127) for channel, volume in volumes.items()}
    assert cuts_db[0] - cuts_db[1] == pytest.approx(20.0, abs=9.0)
    assert all(0 < volume <= 127 for volume in volumes.values())


def test_effects_come_in_their_shares_and_keep_length_and_are_finite(noise):
    found = [effects.draw(dice("effects", number)) for number in range(400)]
    for name, expected in (
        ("reverb_s", 0.7),
        ("drive", 0.4),
        ("low_pass_hz", 0.25),
        ("noise", 0.4),
    ):
        assert np.mean([bool(getattr(each, name)) for each in found]) == pytest.approx(
            expected, abs=0.08
        )
    waveform = noise(1.0, rate=SYNTH_RATE)
    for number, each in enumerate(found[:40]):
        heard = effects.apply(waveform, SYNTH_RATE, each, dice("noise", number))
        assert heard.shape == waveform.shape
        assert heard.dtype == np.float32
        assert np.isfinite(heard).all()


def test_a_low_pass_takes_what_is_above_it_and_noise_has_its_level(noise):
    waveform = noise(2.0, rate=SYNTH_RATE)
    dull = effects.apply(waveform, SYNTH_RATE, effects.Effects(low_pass_hz=3000.0), dice("a"))
    spectrum = np.abs(np.fft.rfft(dull)) / np.abs(np.fft.rfft(waveform))
    assert np.median(spectrum[: 2 * 1000]) > 0.95
    assert np.median(spectrum[2 * 14_000 :]) < 0.1
    for kind in ("white", "pink", "hum"):
        made = effects.noise(kind, SYNTH_RATE, SYNTH_RATE, dice(kind))
        assert np.sqrt(np.mean(made**2)) == pytest.approx(1.0, abs=1e-3)

"""Rendered music whose notes are known, for pre-training with labels. A second run continues where the first stopped.

    python benchmarks/open/synthetic.py ROOT --clips 3000

ROOT was filled by build.py. It gets synthetic/KIND/NUMBER.ogg, labels/synthetic/KIND/NUMBER.json, synthetic.jsonl (these clips alone) and
pretraining-synthetic.jsonl (the recordings, then these), the lists for 'patchifier prepare'.

Labels are times in seconds of the clip: `notes` [start, end, pitch, General MIDI program; 128 is drums, their pitch a key], `beats` [time, position in
the bar from 1], `chords` [start, end, root:quality], `key`, `bpm`, `metre` (beats to a bar). What is not known is left out.
"""

import argparse
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PATCHIFIER_MAX_MEMORY_MB", "3072")  # MuseScore_General unpacks to 1.2 GB

import bands
import composer
import effects
import grooves
import notes
import numpy as np
import packages
import pretraining
import scores
import sound
from groups import dice, read_manifest, require_free, share
from score_sources import COLLECTIONS
from sound import DRUMS, PRE_ROLL_S, SEEN, SYNTH_RATE, Note, Sound, draw_finish

from patchifier.config import RequestError
from patchifier.io import replaced_file

SECONDS = 30.0
SHARES = {"composed": 0.55, "phrases": 0.15, "grooves": 0.15, "scores": 0.15}
NAMES = ("synthetic.jsonl", "pretraining-synthetic.jsonl")
PACKAGE = "musescore-general-soundfont"
MUSESCORE = f"{PACKAGE}/usr/share/sounds/sf3/MuseScore_General_Full.sf3"
FONTS = (SEEN, MUSESCORE)

# Besides those of `notes.FAMILIES`; 110 has the samples of a violin of the validation side.
MORE = {"ensemble": (52,), "brass": (58,), "ethnic": (104, 105, 107, 108)}
# Below -50 dB where others are at -30: tinysoundfont knows no modulators, which these need.
QUIET = {SEEN: (), MUSESCORE: (0, 1, 3, 45, 62, 63)}
CEILINGS = {58: 66, 33: 83, 34: 83, 35: 83, 36: 83, 37: 83, 65: 83, 69: 83, 70: 83}
LOWEST, CEILING = 24, 90  # pitches that sound in tune
KITS = tuple(kit for fold in bands.KITS["train"] for kit in fold if kit != 48)  # 48 has other keys
DRUM_PROGRAM = 128
BASS_BY_BASS = 0.4  # so that families come equally often
DEEPEST_CUT_DB, SPREAD_DB = 40.0, 3.0  # of the volume of a part

Labels = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A clip to make; `given` is its groove or its piece, and `facts` more of its row."""

    path: str
    soundfont: str
    group: str
    given: Any
    facts: dict[str, str]


def build(root: Path, clips: int, workers: int, progress: Callable[[str], Any]) -> int:
    """Make the missing clips, list all, and check the lists; return the number of new clips."""
    tasks = draw_tasks(root, clips)
    missing = [task for task in tasks if not (root / task.path).exists()]
    sound.render_all(root, tasks, workers, lambda title: progress("synthetic"), make)
    rows = [row_of(task) for task in tasks if (root / task.path).exists()]
    pretraining.write(root, NAMES[0], rows)
    pretraining.write(root, NAMES[1], read_manifest(root / pretraining.NAMES[1]) + rows)
    pretraining.check(root, NAMES)
    return sum((root / task.path).exists() for task in missing)


def row_of(task: Task) -> dict[str, Any]:
    """Row of a list for pre-training."""
    facts = {"path": task.path, "seconds": SECONDS, "group": task.group, "kind": "synthetic"}
    return facts | {"licence": "rendered"} | task.facts


# --- draws ---


def counts(clips: int) -> dict[str, int]:
    """Clips of each kind."""
    return {kind: round(part * clips) for kind, part in SHARES.items()}


def draw_tasks(root: Path, clips: int) -> list[Task]:
    """Draw what each clip is made from; more clips leave the first ones as they are."""
    wanted = counts(clips)
    tasks = [
        Task(path, font_of(path), f"synthetic/{path.split('/', 1)[1][:-4]}", None, {})
        for kind in ("composed", "phrases")
        for path in paths(kind, wanted[kind])
    ]
    if wanted["grooves"]:
        styles = grooves.find_styles(root / "deb" / grooves.MMA / "lib" / "stdlib")
        tasks += draw_grooves(styles, wanted["grooves"])
    if wanted["scores"]:
        free = [name for name, collection in COLLECTIONS.items() if collection.free]
        dealt = scores.dealt(root, free)
        tasks += draw_scores([piece for piece, side in dealt if side == "train"], wanted["scores"])
    return tasks


def paths(kind: str, count: int) -> list[str]:
    """Paths of the clips of a kind."""
    return [f"synthetic/{kind}/{number:05d}.ogg" for number in range(count)]


def font_of(path: str) -> str:
    """SoundFont of a clip: each for half of them."""
    return FONTS[share("synthetic/soundfont", path) < 0.5]


def draw_grooves(styles: dict[str, tuple[str, int]], count: int) -> list[Task]:
    """Draw accompaniments in training-side styles over training-side progressions."""
    pool, names = grooves.progressions()["train"], pretraining.training_styles(styles)
    tasks = []
    for path in paths("grooves", count):
        style = str(dice("synthetic/style", path).choice(names))
        groove, name = grooves.draw(path, "train", styles[style], font_of(path), pool, SECONDS)
        facts = {"progression": name}
        tasks.append(Task(path, groove.soundfont, f"grooves/{style}", groove, facts))
    return tasks


def draw_scores(pieces: Sequence[dict[str, Any]], count: int) -> list[Task]:
    """Draw a piece for each clip."""
    tasks = []
    for path in paths("scores", count):
        piece = pieces[int(dice("synthetic/piece", path).integers(len(pieces)))]
        tasks.append(Task(path, font_of(path), f"scores/{piece['group']}", piece, {}))
    return tasks


# --- instruments ---


@functools.cache
def presets(soundfont: str) -> dict[str, tuple[int, ...]]:
    """Presets of each family that may play: none of the validation side, none that is silent."""
    found = {family: tuple(programs) for family, programs in notes.presets("train").items()}
    for family, programs in MORE.items():
        found[family] = found.get(family, ()) + programs
    quiet = QUIET[soundfont]
    return {
        family: tuple(program for program in programs if program not in quiet)
        for family, programs in found.items()
    }


def draw_program(soundfont: str, low: bool, generator: np.random.Generator) -> int:
    """Draw a family, then one of its presets; a low part may be played by a bass."""
    pool = presets(soundfont)
    if low and generator.random() < BASS_BY_BASS:
        return int(generator.choice(pool["bass"]))
    weights = {family: 0.5 if family == "ethnic" else 1.0 for family in pool if family != "bass"}
    family = generator.choice(
        list(weights), p=np.array([*weights.values()]) / sum(weights.values())
    )
    return int(generator.choice(pool[family]))


def draw_kit(generator: np.random.Generator) -> int:
    """Draw a kit of drums: the first most often."""
    return 0 if generator.random() < 0.3 else int(generator.choice(KITS))


def allowed(soundfont: str) -> set[int]:
    """Presets of all families."""
    return {program for programs in presets(soundfont).values() for program in programs}


def settle(played: Sequence[Note], programs: dict[int, int], seconds: float) -> list[Note]:
    """Notes as they will sound: within reach of their preset, each ended before the same one starts again."""
    moved = [
        note
        if note.channel == DRUMS
        else replace(note, pitch=reach(note.pitch, programs[note.channel]))
        for note in played
        if note.end_s > -PRE_ROLL_S and note.start_s < seconds
    ]
    kept: dict[tuple[int, int], list[Note]] = {}
    for note in sorted(moved, key=lambda note: (note.start_s, -note.end_s)):
        same = kept.setdefault((note.channel, note.pitch), [])
        if same and note.start_s - same[-1].start_s < 0.03:
            continue
        if same and same[-1].end_s > note.start_s - 0.003:
            same[-1] = replace(same[-1], end_s=note.start_s - 0.003)
        same.append(note)
    return sorted(
        (note for same in kept.values() for note in same),
        key=lambda note: (note.start_s, note.pitch),
    )


def reach(pitch: int, program: int) -> int:
    """Return the pitch, or an octave of it if the preset is silent or out of tune there."""
    while pitch > CEILINGS.get(program, CEILING):
        pitch -= 12
    while pitch < LOWEST:
        pitch += 12
    return pitch


# --- kinds ---


def compose(root: Path, task: Task) -> tuple[Sound, Labels]:
    """A song of our composer."""
    generator = dice("synthetic/composed", task.path)
    song, parts = composer.compose(generator, SECONDS)
    programs = {}
    for part in parts:
        low = part.role == "bass"
        kit = part.channel == DRUMS
        programs[part.channel] = (
            draw_kit(generator) if kit else draw_program(task.soundfont, low, generator)
        )
    played = [note for part in parts for note in part.notes]
    labels: Labels = {
        "beats": composer.beat_rows(song, SECONDS),
        "chords": composer.chord_rows(song, parts, SECONDS),
        "bpm": round(song.bpm, 2),
        "metre": song.metre,
    }
    if any(part.role != "drums" for part in parts):
        labels["key"] = f"{scores.NAMES[song.tonic]}:{song.mode}"
    return labelled(task, programs, played, labels, generator)


def draw_phrases(root: Path, task: Task) -> tuple[Sound, Labels]:
    """Independent notes and chords of one to four presets; the chords of one alone are known."""
    generator = dice("synthetic/phrases", task.path)
    count = int(generator.integers(1, 5))
    programs = {channel: draw_program(task.soundfont, True, generator) for channel in range(count)}
    played = [
        note for channel in programs for note in notes.draw_phrase(channel, SECONDS, generator)
    ]
    chords = chords_of(played) if count == 1 else []
    return labelled(task, programs, played, {"chords": chords}, generator)


def chords_of(played: Sequence[Note]) -> list[list[Any]]:
    """Return rows [start_s, end_s, chord] of notes that start together."""
    together: dict[float, list[Note]] = {}
    for note in played:
        together.setdefault(note.start_s, []).append(note)
    rows = []
    for start, struck in sorted(together.items()):
        name = chord_name({note.pitch % 12 for note in struck})
        end = min(SECONDS, struck[0].end_s)
        if name and end > start:
            rows.append([round(start, 3), round(end, 3), name])
    return rows


def chord_name(classes: set[int]) -> str:
    """Name of the chord of these pitch classes, or "" if it is none of the eight."""
    for root in sorted(classes):
        for quality, degrees in composer.DEGREES_OF.items():
            if classes == {(root + degree) % 12 for degree in degrees}:
                return f"{scores.NAMES[root]}:{quality}"
    return ""


def accompany(root: Path, task: Task) -> tuple[Sound, Labels]:
    """An accompaniment of mma; its own presets or others, sometimes without drums."""
    generator, groove = dice("synthetic/grooves", task.path), task.given
    text = grooves.chart(groove, int(generator.integers(1, 2**20)))
    events = grooves.write_midi(root / "deb" / grooves.MMA, text)
    own = {event[0]: event[3] for event in events}
    silent = {DRUMS} if len(own) > 1 and generator.random() < 0.2 else set()
    others = generator.random() < 0.7
    programs = {}
    for channel, program in sorted(own.items()):
        drawn = draw_program(task.soundfont, 32 <= program < 40, generator)
        kept = not others and program in allowed(task.soundfont)
        programs[channel] = program if kept else drawn
    programs[DRUMS] = draw_kit(generator)
    played = [
        Note(start - groove.offset_s, end - groove.offset_s, pitch, velocity, channel)
        for channel, start, end, _, pitch, velocity in events
        if channel not in silent
    ]
    labels = {
        "beats": grooves.beat_rows(groove, SECONDS),
        "chords": grooves.chord_rows(groove, SECONDS),
        "bpm": groove.tempo_bpm,
        "metre": groove.beats,
    }
    return labelled(task, programs, played, labels, generator)


def perform(root: Path, task: Task) -> tuple[Sound, Labels]:
    """A piece of a score, with other presets than `scores.perform` draws."""
    generator = dice("synthetic/scores", task.path)
    performed, place = scores.perform(task.given, task.path, task.soundfont, SECONDS)
    others = {
        program: draw_program(task.soundfont, False, generator)
        for program in sorted(set(performed.programs.values()))
    }
    programs = {channel: others[program] for channel, program in performed.programs.items()}
    known = scores.describe(task.given, performed, place)
    labels: Labels = {"key": key_name(known["key"])}
    if known["metre"]:
        beats, unit = map(int, known["metre"].split("/"))
        quarters_per_s = (place["last"] - place["first"]) / SECONDS
        labels |= {"metre": beats, "bpm": round(60 * quarters_per_s * unit / 4, 2)}
    return labelled(task, programs, performed.notes, labels, generator)


def key_name(key: str) -> str:
    """Write "C major" as "C:maj"."""
    tonic, _, mode = key.partition(" ")
    return f"{tonic}:{mode[:3]}" if key else ""


def labelled(
    task: Task,
    programs: dict[int, int],
    played: Sequence[Note],
    labels: Labels,
    generator: np.random.Generator,
) -> tuple[Sound, Labels]:
    """Return the sound of notes, and their rows before the labels that are known."""
    settled = settle(played, programs, SECONDS)
    used = {note.channel for note in settled}
    cast = {channel: program for channel, program in sorted(programs.items()) if channel in used}
    drawn = Sound(task.path, task.soundfont, cast, settled, SECONDS, **draw_finish(generator))
    known = {name: value for name, value in labels.items() if value}
    return drawn, {"notes": note_rows(drawn)} | known


def note_rows(drawn: Sound) -> list[list[Any]]:
    """Return rows [start_s, end_s, pitch, program] within the clip."""
    rows = []
    for note in drawn.notes:
        start, end = max(0.0, note.start_s), min(drawn.seconds, note.end_s)
        if end - start >= 1e-3:
            program = DRUM_PROGRAM if note.channel == DRUMS else drawn.programs[note.channel]
            rows.append([round(start, 3), round(end, 3), note.pitch, program])
    return sorted(rows)


KINDS = {"composed": compose, "phrases": draw_phrases, "grooves": accompany, "scores": perform}


# --- sound ---


def make(root: Path, task: Task) -> str:
    """Write the labels of a clip, then its sound; return its path. A silent clip is not written."""
    require_allowed(task.soundfont)
    drawn, labels = KINDS[task.path.split("/")[1]](root, task)
    with replaced_file(label_path(root, task.path)) as new:
        new.write_text(json.dumps(labels), encoding="utf-8")
    generator = dice("synthetic/effects", task.path)
    player = sound.player(root, task.soundfont)
    waveform = player.play(replace(drawn, volumes=draw_volumes(player, drawn, generator)))
    waveform = effects.apply(waveform, SYNTH_RATE, effects.draw(generator), generator)
    try:
        finished = sound.finish(waveform, SYNTH_RATE, SECONDS, drawn.level_db)
    except RequestError:
        return task.path
    sound.write(root / task.path, finished)
    return task.path


def label_path(root: Path, path: str) -> Path:
    """File of the labels of a clip."""
    return (root / "labels" / path).with_suffix(".json")


def require_allowed(soundfont: str) -> None:
    """Refuse every SoundFont but the two that may train.

    Raises
    ------
    RequestError
        With the name.
    """
    for part in Path(soundfont).parts:
        require_free(part)
    if soundfont not in FONTS:
        raise RequestError(f"{soundfont} may not train, expected one of {', '.join(FONTS)}.")


def draw_volumes(player: Any, drawn: Sound, generator: np.random.Generator) -> dict[int, int]:
    """Volumes that bring the presets of a clip to the level of the quietest, each within a few dB."""
    levels = {
        channel: level_db(player, drawn.soundfont, channel == DRUMS, program)
        for channel, program in drawn.programs.items()
    }
    quietest = min(levels.values(), default=0.0)
    volumes = {}
    for channel, level in levels.items():
        cut_db = level - quietest + abs(float(generator.normal(0, SPREAD_DB)))
        volumes[channel] = round(127 * 10 ** (-min(cut_db, DEEPEST_CUT_DB) / 60))  # a cubic law
    return volumes


_levels: dict[tuple[str, bool, int], float] = {}


def level_db(player: Any, soundfont: str, drums: bool, program: int) -> float:
    """Level of a preset that plays three notes, or of a kit that plays kick, snare and hat."""
    place = (soundfont, drums, program)
    if place not in _levels:
        channel = DRUMS if drums else 0
        pitches = (36, 38, 42) if drums else (43, 55, 67)
        struck = [
            Note(0.3 * number, 0.3 * number + 0.28, pitch, 90, channel)
            for number, pitch in enumerate(pitches)
        ]
        measured = Sound("", soundfont, {channel: program}, struck, 0.9, 0.0, 0.0, {channel: 127})
        waveform = player.play(measured)
        _levels[place] = 20 * float(np.log10(np.sqrt(np.mean(waveform**2)) + 1e-6))
    return _levels[place]


# --- the command ---


def processor_s() -> float:
    """Processor time of this process and of its processes that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> int:
    """Command line."""
    from build import Line

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder that build.py filled")
    parser.add_argument("--clips", type=int, default=3000, help="of 30 s; 3,000 are 1 GB")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    root, started = arguments.root.resolve(), time.monotonic()
    try:
        packages.unpack(root, PACKAGE)
        packages.install_python(root / "python")
        made = build(root, arguments.clips, arguments.workers, Line)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    each = f", {processor_s() / made:.2f} s of processor each" if made else ""
    print(f"{made:,} new clips in {time.monotonic() - started:.0f} s{each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

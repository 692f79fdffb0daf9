"""Songs drawn at random, whose notes, beats, chords and key are known: what `synthetic.py` renders.

A song has a form, as AABA; each letter has its own chords and melody, so music comes back. Its parts repeat drawn patterns with small variations.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grooves
import numpy as np
from notes import QUALITIES
from scores import NAMES
from sound import DRUMS, PRE_ROLL_S, Note

TEMPO_BPM = (50.0, 200.0)
METRES = {4: 0.62, 3: 0.24, 2: 0.07, 6: 0.07}
FORMS = ("AABA", "AABB", "ABAB", "ABAC", "AAAB", "ABCA")
SCALES = {"maj": (0, 2, 4, 5, 7, 9, 11), "min": (0, 2, 3, 5, 7, 8, 10)}
ROLES = {  # share of the parts
    "bass": 0.17, "pad": 0.14, "comping": 0.16, "arpeggio": 0.12, "melody": 0.19, "counter": 0.08, "drums": 0.14,
}  # fmt: skip
ONCE = ("bass", "drums")
HARMONIC = ("pad", "comping", "arpeggio")  # parts that play all notes of a chord
MOST_PARTS = 8
LOWEST, HIGHEST = 28, 88
COLOURS = {"plain": 0.4, "sevenths": 0.3, "wide": 0.3}
HARTE = {name: {"dom7": "7"}.get(name, name) for name in QUALITIES}
DEGREES_OF = {HARTE[name]: degrees for name, degrees in QUALITIES.items()}

KICKS, SNARES, RIDES, CRASHES = (35, 36), (38, 40, 37), (51, 53, 59), (49, 57)
TOMS = (50, 48, 47, 45, 43, 41)
PERCUSSION = (39, 54, 56, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 75, 76, 77)
STRUCK_S = 0.2  # length of a note of drums

Chord = tuple[int, str]  # pitch class of the root, Harte's quality
Hit = tuple[float, float]  # beats from the start of a pattern, length in beats


@dataclass(frozen=True)
class Span:
    """A chord in the bars: from, to (in beats of the song), and what it is."""

    first: float
    last: float
    chord: Chord


@dataclass(frozen=True)
class Song:
    """Everything but the parts; the song begins `offset_s` before the clip does."""

    metre: int
    bpm: float
    steps: int  # of a beat
    swing: float  # delay of the second half of a beat, in beats
    tonic: int
    mode: str
    form: tuple[str, ...]  # the letter of each section
    section_bars: int
    spans: tuple[Span, ...]
    offset_s: float
    loose_s: float  # deviation of a player from the beat

    @property
    def bars(self) -> int:
        """Length of the song."""
        return len(self.form) * self.section_bars

    def time_s(self, beat: float) -> float:
        """Seconds from the start of the clip to a place in the song, swung."""
        whole = math.floor(beat + 1e-9)
        part = beat - whole
        middle = 0.5 + self.swing
        swung = part * middle / 0.5 if part <= 0.5 else middle + (part - 0.5) * (1 - middle) / 0.5
        return (whole + swung) * 60 / self.bpm - self.offset_s

    def chord_at(self, beat: float) -> Chord:
        """Chord at a place in the song."""
        return next(span.chord for span in reversed(self.spans) if span.first <= beat + 1e-6)


@dataclass(frozen=True)
class Part:
    """A player: its role, channel, register and loudness, and the bars in which it plays."""

    role: str
    channel: int
    centre: int
    loudness: float
    active: tuple[bool, ...]
    notes: tuple[Note, ...] = field(default=())


# --- songs ---


def compose(generator: np.random.Generator, seconds: float) -> tuple[Song, list[Part]]:
    """Draw a song that lasts longer than a clip, and its parts with their notes."""
    song = draw_song(generator, seconds)
    return song, [play(song, part, generator) for part in draw_parts(song, generator)]


def draw_song(generator: np.random.Generator, seconds: float) -> Song:
    """Draw metre, tempo, key, form and chords."""
    metre = int(_weighted(METRES, generator))
    bpm = float(np.exp(generator.uniform(*np.log(TEMPO_BPM))))
    steps = 3 if generator.random() < 0.15 else 4
    swung = steps == 4 and generator.random() < 0.2
    mode = "maj" if generator.random() < 0.55 else "min"
    offset_s = PRE_ROLL_S + float(generator.uniform(0, metre * 60 / bpm))
    section_bars = int(generator.choice([2, 4, 4, 8]))
    bars = math.ceil((seconds + offset_s) * bpm / 60 / metre) + 1
    form = str(generator.choice(FORMS))
    sections = tuple(form[i % len(form)] for i in range(math.ceil(bars / section_bars)))
    song = Song(
        metre=metre,
        bpm=bpm,
        steps=steps,
        swing=float(generator.uniform(0.05, 0.17)) if swung else 0.0,
        tonic=int(generator.integers(12)),
        mode=mode,
        form=sections,
        section_bars=section_bars,
        spans=(),
        offset_s=offset_s,
        loose_s=float(generator.uniform(0.001, 0.008)),
    )
    return replace(song, spans=draw_spans(song, generator))


def draw_spans(song: Song, generator: np.random.Generator) -> tuple[Span, ...]:
    """Draw the chords of each letter, and lay them out in the order of the form."""
    colour = str(_weighted(COLOURS, generator))
    chord_beats = _chord_beats(song, generator)
    length = song.section_bars * song.metre
    count = max(1, math.ceil(length / chord_beats))
    letters = {
        letter: draw_chords(song.mode, count, colour, generator) for letter in sorted(set("ABC"))
    }
    spans = []
    for number, letter in enumerate(song.form):
        for place, (semitones, quality) in enumerate(letters[letter]):
            first = number * length + place * chord_beats
            last = min(first + chord_beats, (number + 1) * length)
            spans.append(Span(first, last, ((song.tonic + semitones) % 12, quality)))
    return tuple(spans)


def _chord_beats(song: Song, generator: np.random.Generator) -> float:
    """Length of a chord: a bar, half a bar or two bars."""
    drawn = generator.random()
    if drawn < 0.25 and song.metre in (4, 6):
        return song.metre / 2
    return song.metre * (2.0 if drawn > 0.85 else 1.0)


def draw_chords(
    mode: str, count: int, colour: str, generator: np.random.Generator
) -> list[tuple[int, str]]:
    """Draw (semitones above the tonic, quality); never the progression of a validation or test clip."""
    while True:
        table = grooves.MAJOR if mode == "maj" else grooves.MINOR
        degree = next(iter(table))
        if generator.random() < 0.3:
            degree = str(generator.choice(list(table)))
        chords = []
        for _ in range(count):
            chords.append((grooves.DEGREES[degree], _quality(degree, colour, generator)))
            degree = str(generator.choice(table[degree]))
        if tuple(chords[:8]) not in judged_progressions():
            return chords


def _quality(degree: str, colour: str, generator: np.random.Generator) -> str:
    """Quality of a chord: that of the scale, a seventh of it, or any of the eight."""
    plain = "maj" if degree.isupper() else "min"
    if colour == "wide" and generator.random() < 0.6:
        return str(generator.choice(list(DEGREES_OF)))
    if colour != "plain" and generator.random() < 0.5:
        if degree in ("V", "VII"):
            return "7"
        return "maj7" if plain == "maj" else "min7"
    return plain


@functools.cache
def judged_progressions() -> frozenset[tuple[tuple[int, str], ...]]:
    """Progressions of the validation and test sides of the grooves."""
    pools = grooves.progressions()
    return frozenset(
        tuple(grooves.progression(name)) for side in ("valid", "test") for name in pools[side]
    )


# --- parts ---


def draw_parts(song: Song, generator: np.random.Generator) -> list[Part]:
    """Draw the roles, registers and loudness of one to eight parts; the first part never rests for long."""
    roles = draw_roles(int(generator.integers(1, MOST_PARTS + 1)), generator)
    channels = iter([channel for channel in range(16) if channel != DRUMS])
    parts = []
    for number, role in enumerate(roles):
        centre = 40 if role == "bass" else int(generator.integers(50, 77))
        active = (True,) * song.bars if number == 0 else _active(song.bars, generator)
        channel = DRUMS if role == "drums" else next(channels)
        parts.append(Part(role, channel, centre, float(generator.uniform(65, 105)), active))
    return parts


def draw_roles(count: int, generator: np.random.Generator) -> list[str]:
    """Draw roles; one bass and one set of drums at most, and drums alone seldom."""
    roles: list[str] = []
    while len(roles) < count:
        role = str(_weighted(ROLES, generator))
        taken = role in ONCE and role in roles
        crowded = roles.count(role) >= 2
        alone = count == 1 and role == "drums" and generator.random() < 0.5
        if not (taken or crowded or alone):
            roles.append(role)
    return sorted(roles, key=lambda role: (role == "drums", role not in HARMONIC))


def _active(bars: int, generator: np.random.Generator) -> tuple[bool, ...]:
    """Bars in which a part plays: most often all, else from, until, or except some."""
    way = generator.random()
    cut = int(generator.integers(1, max(2, bars)))
    if way < 0.1:
        return tuple(bar >= cut for bar in range(bars))
    if way < 0.2:
        return tuple(bar < cut for bar in range(bars))
    if way < 0.3:
        return tuple(not cut <= bar < cut + 4 for bar in range(bars))
    return (True,) * bars


def play(song: Song, part: Part, generator: np.random.Generator) -> Part:
    """Return the part with its notes: loose in time, varied in loudness."""
    drawn = PLAYERS[part.role](song, part, generator)
    notes = []
    for beat, length, pitch, accent in drawn:
        if not part.active[min(len(part.active) - 1, int(beat // song.metre))]:
            continue
        start = song.time_s(beat) + float(generator.normal(0, song.loose_s))
        end = song.time_s(beat + length)
        if part.channel == DRUMS:
            end = start + STRUCK_S
        velocity = int(np.clip(part.loudness + accent + generator.normal(0, 6), 20, 127))
        notes.append(Note(start, max(end, start + 0.03), pitch, velocity, part.channel))
    return replace(part, notes=tuple(notes))


Drawn = list[tuple[float, float, int, float]]  # beat, length in beats, pitch, accent


def play_bass(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """Roots, roots and fifths, or a walk from chord to chord."""
    way = str(generator.choice(["roots", "fifths", "walk"]))
    pattern = draw_pattern(song, float(generator.uniform(0.2, 0.6)), generator)
    if way == "walk":
        pattern = [(float(beat), 0.95) for beat in range(song.metre)]
    drawn = []
    for bar in range(song.bars):
        for number, (place, length) in enumerate(pattern):
            beat = bar * song.metre + place
            root, quality = song.chord_at(beat)
            tone = _bass_tone(way, number, quality, generator)
            drawn.append((beat, length, near(root + tone, part.centre), _accent(place)))
    return drawn


def _bass_tone(way: str, number: int, quality: str, generator: np.random.Generator) -> int:
    degrees = DEGREES_OF[quality]
    if way == "roots" or number == 0:
        return 0
    if way == "fifths":
        return degrees[2] if number % 2 else 0
    return int(generator.choice([*degrees, 2, -1]))


def play_pad(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """Every chord held until the next."""
    spread, length = bool(generator.random() < 0.3), float(generator.uniform(0.85, 1.0))
    drawn = []
    for span in song.spans:
        held = (span.last - span.first) * length
        pitches = voiced(span.chord, part.centre, spread)
        drawn += [(span.first, held, pitch, 0.0) for pitch in pitches]
    return drawn


def play_comping(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """Chords in a rhythm of one or two bars that comes back."""
    density = float(generator.uniform(0.25, 0.7))
    patterns = [draw_pattern(song, density, generator)]
    if generator.random() < 0.4:
        patterns.append(draw_pattern(song, density, generator))
    spread, drawn = bool(generator.random() < 0.2), []
    for bar in range(song.bars):
        for place, length in patterns[bar % len(patterns)]:
            beat = bar * song.metre + place
            pitches = voiced(song.chord_at(beat), part.centre, spread)
            drawn += [(beat, length, pitch, _accent(place)) for pitch in pitches]
    return drawn


def play_arpeggio(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """The notes of the chord one after another, in a drawn order."""
    step = float(generator.choice([1.0, 2.0]) / song.steps)
    ring = float(generator.choice([0.9, 0.9, 2.0]))
    order = str(generator.choice(["up", "down", "both", "mixed"]))
    mixed = generator.permutation(8).tolist()
    drawn = []
    for number in range(int(song.bars * song.metre / step)):
        beat = number * step
        tones = voiced(song.chord_at(beat), part.centre, False)
        tones.append(tones[0] + 12)
        pitch = tones[_turn(order, number, len(tones), mixed)]
        drawn.append((beat, ring * step, pitch, _accent(beat % song.metre)))
    return drawn


def _turn(order: str, number: int, count: int, mixed: Sequence[int]) -> int:
    """Index of the tone that is next."""
    if order == "down":
        return count - 1 - number % count
    if order == "both":
        return abs((number + count - 1) % (2 * count - 2) - (count - 1))
    return mixed[number % 8] % count if order == "mixed" else number % count


def play_melody(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """A walk on the scale for each letter of the form, in a rhythm that comes back; chord tones on the beats."""
    density = float(generator.uniform(0.2, 0.65))
    phrases = {letter: _phrase(song, density, generator) for letter in sorted(set(song.form))}
    scale, drawn = SCALES[song.mode], []
    for number, letter in enumerate(song.form):
        first = number * song.section_bars * song.metre
        for place, length, degree in phrases[letter]:
            pitch = near(song.tonic + scale[degree % 7], part.centre) + 12 * (degree // 7)
            if place % 1 == 0:
                pitch = _to_chord(pitch, song.chord_at(first + place))
            drawn.append((first + place, length, pitch, _accent(place % song.metre)))
    return drawn


def _phrase(
    song: Song, density: float, generator: np.random.Generator
) -> list[tuple[float, float, int]]:
    """(place in beats, length in beats, degree) in a section: two rhythms in turn, some bars empty or at rest."""
    rhythms = [draw_pattern(song, density, generator) for _ in range(2)]
    degree, phrase = int(generator.integers(-2, 5)), []
    for bar in range(song.section_bars):
        if bar and generator.random() < 0.1:
            continue
        for place, length in rhythms[bar % 2]:
            degree = int(np.clip(degree + generator.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]), -5, 8))
            phrase.append((bar * song.metre + place, length, degree))
    return phrase


def _to_chord(pitch: int, chord: Chord) -> int:
    root, quality = chord
    tones = [near(root + degree, pitch) for degree in DEGREES_OF[quality]]
    return min(tones, key=lambda tone: (abs(tone - pitch), tone))


def play_drums(song: Song, part: Part, generator: np.random.Generator) -> Drawn:
    """A pattern of kick, snare, hats and percussion that comes back with small changes, fills and crashes."""
    pattern = draw_beat(song, generator)
    fills, crashes = generator.random() < 0.4, generator.random() < 0.4
    every = int(generator.choice([2, 4, 4, 8]))
    drawn: Drawn = []
    for bar in range(song.bars):
        first = bar * song.metre
        filled = fills and bar % every == every - 1
        for place, key in pattern:
            if generator.random() < 0.04 or (filled and place >= song.metre - 1):
                continue
            drawn.append((first + place, 0.1, key, _accent(place)))
        if filled:
            drawn += _fill(song, first + song.metre - 1, generator)
        if crashes and bar % every == 0:
            drawn.append((first, 0.1, int(generator.choice(CRASHES)), 8.0))
    return drawn


def _fill(song: Song, beat: float, generator: np.random.Generator) -> Drawn:
    toms = sorted(generator.choice(TOMS, song.steps).tolist(), reverse=True)
    return [(beat + step / song.steps, 0.1, int(tom), 4.0) for step, tom in enumerate(toms)]


def draw_beat(song: Song, generator: np.random.Generator) -> list[tuple[float, int]]:
    """(place in beats, key) of a bar of drums."""
    struck: set[tuple[float, int]] = set()
    kick, snare = int(generator.choice(KICKS)), int(generator.choice(SNARES))
    steps = [step / song.steps for step in range(song.metre * song.steps)]
    if generator.random() < 0.92:
        struck.add((0.0, kick))
        struck |= {(place, kick) for place in _chosen(steps, 0.45, 0.1, generator)}
    if generator.random() < 0.88:
        struck |= {(float(beat), snare) for beat in _backbeats(song.metre, generator)}
        struck |= {(place, snare) for place in _chosen(steps, 0.0, 0.06, generator)}
    if generator.random() < 0.85:
        struck |= _cymbals(song, generator)
    for _ in range(int(generator.choice([0, 0, 0, 1, 1, 2]))):
        key = int(generator.choice(PERCUSSION))
        struck |= {(place, key) for place in _chosen(steps, 0.35, 0.2, generator)}
    return sorted(struck) or [(0.0, kick)]


def _chosen(
    steps: Sequence[float], on_beat: float, off_beat: float, generator: np.random.Generator
) -> list[float]:
    drawn = generator.random(len(steps))
    return [
        place for place, luck in zip(steps, drawn) if luck < (off_beat if place % 1 else on_beat)
    ]


def _backbeats(metre: int, generator: np.random.Generator) -> list[int]:
    ways = {2: [[1]], 3: [[1, 2], [2]], 4: [[1, 3], [1, 3], [1, 3], [2]], 6: [[3], [2, 5]]}[metre]
    return ways[int(generator.integers(len(ways)))]


def _cymbals(song: Song, generator: np.random.Generator) -> set[tuple[float, int]]:
    """Hats or a ride at every beat, half a beat or step; sometimes one of them is open."""
    key = (
        int(generator.choice(RIDES))
        if generator.random() < 0.3
        else int(generator.choice((42, 44)))
    )
    apart = float(generator.choice([1.0, 0.5, 0.5, 1 / song.steps]))
    if song.steps == 3:
        apart = float(generator.choice([1.0, 1 / 3]))
    places = [number * apart for number in range(round(song.metre / apart))]
    opened = int(generator.integers(len(places))) if generator.random() < 0.3 else -1
    return {(place, 46 if number == opened else key) for number, place in enumerate(places)}


PLAYERS: dict[str, Any] = {
    "bass": play_bass,
    "pad": play_pad,
    "comping": play_comping,
    "arpeggio": play_arpeggio,
    "melody": play_melody,
    "counter": play_melody,
    "drums": play_drums,
}


# --- rhythm and pitch ---


def draw_pattern(song: Song, density: float, generator: np.random.Generator) -> list[Hit]:
    """Draw the onsets of a bar: more on the beats than between; each lasts until the next, or shorter."""
    steps = song.metre * song.steps
    weights = np.full(steps, 0.35)
    if song.steps == 4:
        weights[2::4] = 0.8
    weights[:: song.steps] = 1.3
    weights[0] = 1.8
    onsets = np.flatnonzero(generator.random(steps) < density * weights)
    onsets = onsets if len(onsets) else np.array([0])
    lengths = np.diff(np.append(onsets, steps))
    held = float(generator.choice([0.35, 0.6, 0.9, 0.97]))
    return [
        (float(onset) / song.steps, float(length) / song.steps * held)
        for onset, length in zip(onsets, lengths)
    ]


def _accent(place: float) -> float:
    """Loudness of a place in a bar, in steps of velocity."""
    if place == 0:
        return 8.0
    return 0.0 if place % 1 == 0 else -6.0


def voiced(chord: Chord, centre: int, spread: bool) -> list[int]:
    """Pitches of a chord near a register; if it is spread, the second goes up an octave."""
    root, quality = chord
    pitches = [near(root + degree, centre) for degree in DEGREES_OF[quality]]
    if spread:
        pitches[1] += 12
    return sorted(pitches)


def near(pitch_class: int, centre: int) -> int:
    """Return the pitch of this class that is nearest to a register, within what is played."""
    pitch = centre - 6 + (pitch_class - centre + 6) % 12
    while pitch < LOWEST:
        pitch += 12
    while pitch > HIGHEST:
        pitch -= 12
    return pitch


def _weighted(shares: dict[Any, float], generator: np.random.Generator) -> Any:
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return names[int(generator.choice(len(names), p=weights / weights.sum()))]


# --- labels ---


def beat_rows(song: Song, seconds: float) -> list[list[Any]]:
    """Return rows [time_s, position in the bar] of the clip."""
    times = [(song.time_s(beat), beat % song.metre + 1) for beat in range(song.bars * song.metre)]
    return [[round(time, 3), place] for time, place in times if 0 <= time < seconds]


def chord_rows(song: Song, parts: Sequence[Part], seconds: float) -> list[list[Any]]:
    """Return rows [start_s, end_s, chord] of the bars in which a part plays the chord; neighbours of one name are joined."""
    rows: list[list[Any]] = []
    harmony = [note for part in parts if part.role in HARMONIC for note in part.notes]
    for first, last, (root, quality) in _by_bar(song):
        start, end = max(0.0, song.time_s(first)), min(seconds, song.time_s(last))
        name = f"{NAMES[root]}:{quality}"
        if end - start < 1e-3 or not _sounds(harmony, start, end):
            continue
        if rows and rows[-1][2] == name and abs(rows[-1][1] - start) < 2e-3:
            rows[-1][1] = round(end, 3)
        else:
            rows.append([round(start, 3), round(end, 3), name])
    return rows


def _sounds(played: Sequence[Note], start_s: float, end_s: float) -> bool:
    """Whether a note sounds within a stretch, by more than the looseness of a player."""
    return any(note.start_s < end_s - 0.05 and note.end_s > start_s + 0.05 for note in played)


def _by_bar(song: Song) -> list[tuple[float, float, Chord]]:
    """Chords cut at the bars."""
    pieces = []
    for span in song.spans:
        first = span.first
        while first < span.last - 1e-6:
            bar_end = (math.floor(first / song.metre + 1e-6) + 1.0) * song.metre
            last = min(bar_end, span.last)
            pieces.append((first, last, span.chord))
            first = last
    return pieces

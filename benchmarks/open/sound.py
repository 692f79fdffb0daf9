"""Render notes by a SoundFont, and write every clip in the same way.

Timbre, tuning and level never depend on a label: the caller draws them from words without the label.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from groups import require_free

from patchifier import jobs
from patchifier.config import RequestError
from patchifier.io import replaced_file

SAMPLE_RATE = 22_050
SYNTH_RATE = 44_100  # a SoundFont played at 22,050 Hz aliases
DRUMS = 9  # channel
VOLUME = 7  # MIDI's controller
PRE_ROLL_S = 1.5  # rendered and cut off, so that a clip begins in the middle of the music
TUNING_CENTS = 50.0
LEVEL_DB = (-24.0, -16.0)  # root mean square
PEAK = 0.98
SILENCE_DB = -70.0

SEEN, UNSEEN = (
    "fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "csound-soundfont/usr/share/sounds/sf2/sf_GMbank.sf2",
)

# General MIDI programs that sustain at any pitch: no drums, effects or drones.
PROGRAMS = (
    0, 1, 4, 6, 7, 8, 11, 12, 13, 16, 19, 21, 22, 24, 25, 26, 32, 40, 41, 42, 46, 48, 49, 52, 56, 57, 58, 60, 61, 64, 65, 66, 68, 70, 71, 72, 73, 74, 75,
    79, 80, 81, 88, 89, 104, 105, 107, 108, 110,
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """A sounding note; times in seconds from the start of the clip, below 0 in the pre-roll."""

    start_s: float
    end_s: float
    pitch: int
    velocity: int
    channel: int = 0


@dataclass(frozen=True)
class Sound:
    """Everything that determines a rendered clip.

    Parameters
    ----------
    path : str
        Path of the clip below the root.
    soundfont : str
        Below ROOT/deb: :data:`SEEN` or :data:`UNSEEN`.
    programs : dict of int
        Channel -> General MIDI program; of drums the kit, by default the first.
    notes : sequence of Note
    seconds, tuning_cents, level_db : float
        Length, deviation from 440 Hz, and root mean square.
    volumes : dict of int
        Channel -> MIDI volume, 0 to 127; by default the highest.
    """

    path: str
    soundfont: str
    programs: Mapping[int, int]
    notes: Sequence[Note]
    seconds: float
    tuning_cents: float
    level_db: float
    volumes: Mapping[int, int] = field(default_factory=dict)


def soundfont_for(side: str) -> str:
    """Return the SoundFont of a side; that of the test is in no training or validation data."""
    return UNSEEN if side == "test" else SEEN


def draw_finish(generator: np.random.Generator) -> dict[str, float]:
    """Draw tuning and level."""
    return {
        "tuning_cents": float(generator.uniform(-TUNING_CENTS, TUNING_CENTS)),
        "level_db": float(generator.uniform(*LEVEL_DB)),
    }


# --- rendering ---


class Player:
    """A SoundFont that is loaded once and renders one clip after another."""

    def __init__(self, path: Path) -> None:
        import tinysoundfont

        require_free(path.name)
        self.synth = tinysoundfont.Synth(gain=-6.0, samplerate=SYNTH_RATE)
        self.number = self.synth.sfload(str(path))
        self.changed: set[int] = set()  # channels whose volume the clip before set

    def play(self, sound: Sound) -> np.ndarray:
        """Waveform (S,) float32 at 44,100 Hz, mono, with the pre-roll in front."""
        self._begin(sound)
        length = int((sound.seconds + PRE_ROLL_S) * SYNTH_RATE)
        parts, now = [], 0
        for time, on, note in _events(sound.notes):
            if time >= length:
                break
            if time - now >= SYNTH_RATE // 500:  # events within 2 ms share a block
                parts.append(self._generate(time - now))
                now = time
            if on:
                self.synth.noteon(note.channel, note.pitch, note.velocity)
            else:
                self.synth.noteoff(note.channel, note.pitch)
        parts.append(self._generate(length - now))
        return np.concatenate(parts)

    def _begin(self, sound: Sound) -> None:
        self.synth.sounds_off()
        self._generate(SYNTH_RATE // 10)  # the end of the clip before fades
        self.synth.program_select(DRUMS, self.number, 128, 0, True)
        for channel, program in sound.programs.items():
            if channel == DRUMS:
                self.synth.program_select(DRUMS, self.number, 128, program, True)
                continue
            self.synth.program_select(channel, self.number, 0, program)
            self.synth.set_tuning(channel, sound.tuning_cents / 100)
        for channel in self.changed | sound.volumes.keys():
            self.synth.control_change(channel, VOLUME, sound.volumes.get(channel, 127))
        self.changed = set(sound.volumes)

    def _generate(self, samples: int) -> np.ndarray:
        return np.frombuffer(self.synth.generate(samples), np.float32).reshape(-1, 2).mean(1)


def _events(notes: Sequence[Note]) -> list[tuple[int, bool, Note]]:
    """(sample, on, note) in order; at one moment, ends come before starts."""
    events = []
    for note in notes:
        start = max(0.0, note.start_s + PRE_ROLL_S)
        end = max(note.end_s + PRE_ROLL_S, start + 0.03)
        events += [(int(start * SYNTH_RATE), True, note), (int(end * SYNTH_RATE), False, note)]
    return sorted(events, key=lambda event: event[:2])


# --- writing ---


def finish(waveform: np.ndarray, rate: int, seconds: float, level_db: float) -> np.ndarray:
    """Return the last `seconds` of a waveform at 22,050 Hz, at this level or, if it would clip, below it."""
    samples = round(seconds * SAMPLE_RATE)
    waveform = (
        waveform
        if rate == SAMPLE_RATE
        else soxr.resample(waveform, rate, SAMPLE_RATE, quality="HQ")
    )
    waveform = np.pad(waveform, (max(0, samples - len(waveform)), 0))[-samples:]
    level = float(np.sqrt(np.mean(waveform**2, dtype=np.float64)))
    if level < 10 ** (SILENCE_DB / 20):
        raise RequestError(f"a clip is silent ({level:.1e} of full scale), expected sound.")
    waveform = waveform * (10 ** (level_db / 20) / level)
    peak = float(np.abs(waveform).max())
    return (waveform * min(1.0, PEAK / peak)).astype(np.float32)


def write(path: Path, waveform: np.ndarray) -> None:
    """Write a clip as every clip is written: 22,050 Hz, mono, Ogg Vorbis of libsndfile's own quality."""
    with (
        replaced_file(path) as new,
        soundfile.SoundFile(new, "w", SAMPLE_RATE, 1, format="OGG", subtype="VORBIS") as file,
    ):
        for first in range(
            0, len(waveform), 65_536
        ):  # one large write overflows the stack of some builds of libsndfile
            file.write(waveform[first : first + 65_536])


_players: dict[Path, Player] = {}


def render(root: Path, sound: Sound) -> str:
    """Render and write one clip, unless it exists; return its path."""
    target = root / sound.path
    if not target.exists():
        waveform = player(root, sound.soundfont).play(sound)
        write(target, finish(waveform, SYNTH_RATE, sound.seconds, sound.level_db))
    return sound.path


def player(root: Path, soundfont: str) -> Player:
    """Return the player of a SoundFont; one is kept, since FluidR3 takes 300 MB."""
    path = root / "deb" / soundfont
    if path not in _players:
        _players.clear()
        _players[path] = Player(path)
    return _players[path]


def render_all(
    root: Path,
    sounds: Sequence[Sound],
    workers: int,
    progress: Callable[[str], Any],
    work: Callable[[Path, Any], str] = render,
) -> None:
    """Write the missing clips in processes.

    Raises
    ------
    RequestError
        If a clip killed its process.
    """
    missing = sorted(
        (sound for sound in sounds if not (root / sound.path).exists()),
        key=lambda sound: getattr(sound, "soundfont", ""),
    )
    shown = progress("")
    batches = [[(work, sound)] for sound in missing]
    for number, (sound, note) in enumerate(
        zip(missing, jobs.run(_render, batches, workers=workers, shared=root), strict=True), 1
    ):
        if note != sound.path:  # a silent clip is not written, and is no fault
            raise RequestError(
                f"{sound.path} could not be made: {note}. Run the same command again."
            )
        shown(number, len(missing), note)


def _render(root: Path, tasks: Sequence[tuple[Callable[[Path, Any], str], Any]]) -> list[str]:
    return [work(root, sound) for work, sound in tasks]

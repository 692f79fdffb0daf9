"""NSynth: 305,979 single notes of four seconds, for pitch and for the family of the instrument.

=========  =========================================================================================
size       305,979 notes of 1,006 instruments: 289,205 / 12,678 / 4,096
audio      wav, 16 kHz, mono, 16-bit; 4 s
origin     Google Magenta, from commercial sample libraries;
           https://magenta.tensorflow.org/datasets/nsynth
licence    CC BY 4.0
citation   Engel, Resnick, Roberts, Dieleman, Eck, Simonyan, Norouzi: Neural audio synthesis of
           musical notes with WaveNet autoencoders. ICML 2017
files      nsynth-SPLIT/examples.json and nsynth-SPLIT/audio/NOTE.wav, SPLIT being train, valid and
           test
=========  =========================================================================================

Variants: ``family`` (11 classes, the default) and ``pitch`` (128, the MIDI note), both by accuracy.
The group of a clip is its instrument.

Traps
-----
* synth_lead may be absent from valid and test: it stays among the classes.
* Most MIDI notes below 21 and above 108 never occur; they stay among the 128 classes.
* The sound ends at 8 kHz.
"""

from pathlib import Path
from typing import Any

from patchifier.config import RequestError
from patchifier.datasets import SPLITS, Clip, Dataset
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant
from patchifier.io import parse_json, read_text
from patchifier.tasks import Task

FAMILIES = (  # 0 to 10
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
    "synth_lead", "vocal",
)  # fmt: skip
INFO = ("pitch", "velocity", "instrument_family_str", "instrument_source_str")
PITCHES = tuple(str(pitch) for pitch in range(128))


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    clips = [
        _clip(root, split, note, facts, variant)
        for split in SPLITS
        for note, facts in _notes(root / f"nsynth-{split}" / "examples.json").items()
    ]
    names = PITCHES if variant == "pitch" else FAMILIES
    return Dataset("nsynth", tuple(clips), Task("one-of", names))


def _notes(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise RequestError(f"{path} is not there, expected the list of notes as published.")
    try:
        notes = parse_json(read_text(path))
    except ValueError as error:
        raise RequestError(
            f"{path} is not JSON ({error}), expected the list of notes as published."
        ) from error
    if isinstance(notes, dict) and notes and all(isinstance(row, dict) for row in notes.values()):
        return notes
    raise RequestError(f"{path} holds no notes by name, expected the list of notes as published.")


def _clip(root: Path, split: str, note: str, facts: dict[str, Any], variant: str) -> Clip:
    field, names = ("pitch", PITCHES) if variant == "pitch" else ("instrument_family", FAMILIES)
    value = facts.get(field)
    if type(value) is not int or not 0 <= value < len(names):
        raise RequestError(
            f"nsynth-{split}/examples.json: {field} of {note} is {value!r}, expected a number "
            f"from 0 to {len(names) - 1}."
        )
    return Clip(
        id=note,
        path=str(root / f"nsynth-{split}" / "audio" / f"{note}.wav"),
        split=split,
        group=str(facts.get("instrument_str") or note),
        target=names[value],
        info={key: str(facts[key]) for key in INFO if key in facts},
    )


_HOST = "http://download.magenta.tensorflow.org/datasets/nsynth"
_COUNTS = {"train": 289_205, "valid": 12_678, "test": 4_096}
_ARCHIVES = [f"nsynth-{split}.jsonwav.tar.gz" for split in SPLITS]

SHEET = Sheet(
    name="nsynth",
    title="NSynth",
    home="https://magenta.tensorflow.org/datasets/nsynth",
    licence="CC BY 4.0",
    citation="Engel et al.: Neural audio synthesis of musical notes with WaveNet autoencoders. "
    "ICML 2017",
    read=read,
    variants={
        "family": Variant("family of the instrument, 11 classes", _COUNTS),
        "pitch": Variant("MIDI note, 128 classes", _COUNTS),
    },
    remotes=tuple(Remote(name, (f"{_HOST}/{name}",)) for name in _ARCHIVES),
    archives=tuple(Archive(name, unpacked_b=64 * 2**30) for name in _ARCHIVES),  # train: 37 GB
    steps="If an address does not answer, take the json/wav archives from "
    "https://magenta.tensorflow.org/datasets/nsynth and unpack them in the root.",
)

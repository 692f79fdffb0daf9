"""Mutated audio files of every container and codec that the installed decoders know."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile

from patchifier import audio
from patchifier.config import RequestError
from patchifier.decode import CODECS
from tests import audio_files as made
from tests.torture import Attack, Result
from tests.torture._mutants import captured, mutate, splice, survive, unclear

SECONDS = 0.5
CODER_S = 0.07  # most that a coder may leave out at both ends
RATES = (made.RATE, 48_000, 16_000, 8_000)  # the first one that a format takes
MUXERS = (
    "wav w64 aiff au caf flac ogg opus mp2 mp3 adts mov mp4 ipod asf matroska webm wv tta"
).split()
PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24be", "pcm_f32le", "pcm_u8", "pcm_alaw")
MUTANTS_OF_A_FILE = 8  # in the short form, which takes fewer files
SUFFIXES = sorted(audio.SUFFIXES)

Make = Callable[[Path, int], object]


class Seed(NamedTuple):
    """A healthy file, or one that is wrong in a way that loses nothing."""

    name: str
    suffix: str
    content: bytes
    length_s: float

    @property
    def in_a_row(self) -> bool:
        """Whether a second copy behind it is played, too."""
        return self.content[:4] in (b"OggS", b"ID3\4") or self.content[:1] == b"\xff"


def _sndfile(path: Path, rate: int, *, format: str, subtype: str) -> None:
    made.write(path, made.music(SECONDS, rate=rate), rate, format=format, subtype=subtype)


def _muxed(path: Path, rate: int, *, muxer: str, codec: str) -> None:
    made.muxed(path, SECONDS, codec=codec, format=muxer, rate=rate)


def _surround(path: Path, *, codec: str, format: str) -> None:
    made.muxed(path, SECONDS, codec=codec, format=format, layout="7.1")


ODD: dict[str, Callable[[Path], object]] = {
    "variable.mp3": lambda path: made.mp3(path, SECONDS, tag=False),
    "piped.flac": lambda path: made.flac(path, SECONDS, stated=0),
    "recorded.wav": lambda path: made.wav(path, SECONDS, stated=0),
    "streamed.wav": lambda path: made.wav(path, SECONDS, stated=2**32 - 1),
    "recorded.aiff": lambda path: made.aiff(path, SECONDS, stated=0),
    "endless.opus": lambda path: made.without_end_flag(made.opus(path, SECONDS)),
    "surround.mp4": lambda path: _surround(path, codec="aac", format="mp4"),
    "surround.wv": lambda path: _surround(path, codec="wavpack", format="wv"),
}
"""Files whose headers state no length or a wrong one, and files of eight channels."""


def makers() -> dict[str, Make]:
    """What writes a file of every pair of container and codec; some cannot be written."""
    pairs: dict[str, Make] = {}
    for format in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(format):
            pairs[f"{subtype}.{format.lower()}"] = functools.partial(
                _sndfile, format=format, subtype=subtype
            )
    for muxer in MUXERS:
        for codec in sorted(CODECS | set(PCM)):
            pairs[f"{codec}.{muxer}"] = functools.partial(_muxed, muxer=muxer, codec=codec)
    return pairs | {name: lambda path, rate, make=make: make(path) for name, make in ODD.items()}


def _written(path: Path, make: Make) -> bool:
    for rate in RATES:
        try:
            make(path, rate)
        except (soundfile.LibsndfileError, av.FFmpegError, ValueError):  # no such pair
            continue
        return True
    return False


def seeds(folder: Path, draw: np.random.Generator) -> Iterator[Seed]:
    """Files of all pairs that can be written and are recognized, in any order."""
    pairs = makers()
    for name in draw.permutation(sorted(pairs)):
        path = folder / f"seed-{name}"
        if not _written(path, pairs[name]):
            continue
        try:
            length_s = len(audio.load(path)) / audio.SAMPLE_RATE
        except RequestError:  # samples without a header among them
            continue
        yield Seed(name, path.suffix, path.read_bytes(), length_s)


# --- mutants ---

TAGS = (made.id3(), made.id3(40), made.id3() + bytes(700))
ENDS = (made.APE, made.ID3V1, made.APE + made.ID3V1, bytes(5))


def _intact(seed: Seed, draw: np.random.Generator) -> tuple[bytes, float]:
    """A mutant that holds all of the audio, and how long that is."""
    how = draw.integers(4)
    if how == 0:
        return TAGS[draw.integers(len(TAGS))] + seed.content, SECONDS
    if how == 1:
        return seed.content + ENDS[draw.integers(len(ENDS))], SECONDS
    if how == 2 and seed.in_a_row:
        return 2 * seed.content, 2 * SECONDS
    return seed.content, SECONDS


def _mutant(
    all_seeds: list[Seed], seed: Seed, draw: np.random.Generator
) -> tuple[str, bytes, float]:
    """Suffix, content and least length of a mutant; the length is 0 where audio may be damaged."""
    suffix = seed.suffix if draw.integers(2) else SUFFIXES[draw.integers(len(SUFFIXES))]
    how = draw.integers(10)
    if how == 0:
        return suffix, *_intact(seed, draw)
    if how == 1:
        other = all_seeds[draw.integers(len(all_seeds))]
        return suffix, splice(seed.content, other.content, draw), 0.0
    return suffix, mutate(seed.content, draw), 0.0


def _check(all_seeds: list[Seed], number: int, folder: Path, draw: np.random.Generator) -> str:
    seed = all_seeds[number % len(all_seeds)]
    suffix, content, least_s = _mutant(all_seeds, seed, draw)
    path = folder / f"mutant{suffix}"
    path.write_bytes(content)
    words = decode(path, 0.0 if least_s == 0 else least_s - CODER_S * least_s / SECONDS)
    return f"{words} ({seed.name} as {suffix})" if words else ""


def decode(path: Path, least_s: float) -> str:
    """What is wrong with the samples of a file, or with the message that refuses it."""
    samples = 0
    try:
        for block in audio.blocks(path):
            samples += len(block)
            if block.dtype != np.float32 or block.ndim != 1 or not np.isfinite(block).all():
                return "samples that are no finite float32"
    except RequestError as error:
        return unclear(error, str(path))
    except MemoryError:  # what a header asks for is refused, and a job names the file
        return ""
    length_s = samples / audio.SAMPLE_RATE
    return "" if length_s >= least_s else f"{length_s:.2f} of {least_s:.2f} s without a word"


def run(folder: Path, count: int, draw: np.random.Generator) -> Result:
    most = max(1, count // MUTANTS_OF_A_FILE)
    with captured(folder / "decoders"):  # they complain about what they wrote themselves
        found = [seed for seed, _ in zip(seeds(folder, draw), range(most), strict=False)]
    short = [seed for seed in found if seed.length_s < SECONDS - CODER_S]
    result = survive(_check, found, folder, count, draw)
    result.inputs = len(found)
    result.lost += [f"{seed.name} gives {seed.length_s:.2f} of {SECONDS} s" for seed in short]
    return result


ATTACKS = [Attack(5, "mutated audio", run, count=16_000, short=800)]

"""How often a search says that nothing is close: for music, and for noise, tones and signals like speech.

    python benchmarks/closeness.py

The library is the 112 bundled clips. Queries are each clip, in the library of the others, and in that of the other soundtracks; every third clip 30 dB quieter, with noise 20 dB below it, and at a rate of
8 kHz; and 13 kinds of made signals, six of each, at -6 to -40 dB. The rule by the cosine alone is that of the first version of the page. Writes results/closeness.json.
"""

import csv
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from timing import keep

from patchifier import embed, library
from patchifier.datasets import demo
from patchifier.library import search
from patchifier.library.search.closeness import not_close

RATE, SECONDS, SEEDS = 22_050, 15, 6
LEVELS_DB = (-20, -12, -30, -40, -20, -6)
COUNT, T = SECONDS * RATE, np.arange(SECONDS * RATE) / RATE


def coloured(draw, slope):
    spectrum = np.fft.rfft(draw.standard_normal(COUNT))
    return np.fft.irfft(spectrum / np.maximum(1, np.arange(len(spectrum))) ** slope, COUNT)


def band(draw, low, high):
    spectrum, hz = np.fft.rfft(draw.standard_normal(COUNT)), np.fft.rfftfreq(COUNT, 1 / RATE)
    return np.fft.irfft(np.where((hz > low) & (hz < high), spectrum, 0), COUNT)


def curve(draw, low, high, points):
    """A random curve between two values, a line between points."""
    return np.interp(T, np.sort(draw.uniform(0, SECONDS, points)), draw.uniform(low, high, points))


def speech(draw):
    """Pulses of a voice through three moving formants, with pauses, and hissing sounds."""
    phase = np.cumsum(draw.uniform(90, 220) * curve(draw, 0.8, 1.25, 64)) / RATE
    pulses = np.diff(np.floor(phase), prepend=0) + 0.02 * draw.standard_normal(COUNT)
    voice = np.zeros(COUNT)
    for low, high, width in ((250, 850, 80), (800, 2300, 120), (2200, 3200, 200)):
        formant = curve(draw, low, high, 70)
        for start in range(0, COUNT, 441):
            ring = np.arange(600) / RATE
            tone = np.exp(-np.pi * width * ring) * np.sin(2 * np.pi * formant[start] * ring)
            made = np.convolve(pulses[start : start + 441], tone)[: COUNT - start]
            voice[start : start + len(made)] += made
    syllables = np.maximum(0, curve(draw, -0.5, 1, 120))
    hiss = band(draw, 3500, 9000) * np.maximum(0, curve(draw, -3, 1, 120))
    return voice / voice.std() * syllables + 0.15 * hiss / hiss.std()


def clicks(draw):
    """A metronome."""
    wave = np.zeros(COUNT)
    wave[:: int(RATE * 60 / draw.uniform(70, 170))] = 1
    return np.convolve(wave, np.exp(-np.arange(400) / 60) * np.sin(0.4 * np.arange(400)))[:COUNT]


def crackle(draw):
    wave, noise = np.zeros(COUNT), coloured(draw, 0.5)
    wave[draw.integers(0, COUNT, 400)] = draw.standard_normal(400)
    return wave + 0.01 * noise / noise.std()


def hum(draw):
    hz = draw.uniform(45, 65)
    tones = sum(np.sin(2 * np.pi * hz * k * T) / k for k in range(1, 12))
    return tones + 0.05 * draw.standard_normal(COUNT)


def chirp(draw):
    turns = draw.uniform(0.1, 0.5) * T
    return np.sin(2 * np.pi * np.cumsum(200 * 16 ** (turns % 1)) / RATE)


SIGNALS = {
    "white noise": lambda draw: draw.standard_normal(COUNT),
    "pink noise": lambda draw: coloured(draw, 0.5),
    "brown noise": lambda draw: coloured(draw, 1),
    "band of noise": lambda draw: band(draw, low := draw.uniform(100, 3000), 2.5 * low),
    "rain": lambda draw: coloured(draw, 0.3) * (1 + 0.5 * curve(draw, -1, 1, 32)),
    "crackle": crackle,
    "tone": lambda draw: np.sin(2 * np.pi * draw.uniform(100, 2000) * T),
    "hum of mains": hum,
    "sweeps": chirp,
    "like speech": speech,
    "like four voices": lambda draw: sum(speech(draw) for _ in range(4)),
    "like speech, in noise": lambda draw: speech(draw) + 0.7 * draw.standard_normal(COUNT),
    "metronome": clicks,
}


def signals(folder):
    """Write the made signals; kind of each file."""
    kinds = {}
    for number, (kind, make) in enumerate(SIGNALS.items()):
        for seed, level in enumerate(LEVELS_DB):
            wave = make(np.random.default_rng([number, seed]))
            wave = np.clip(wave * 10 ** (level / 20) / np.sqrt((wave**2).mean()), -1, 1)
            path = folder / f"{number:02d}-{seed}.wav"
            soundfile.write(path, wave, RATE, subtype="FLOAT")
            kinds[str(path)] = kind
    return kinds


def altered(folder, clips):
    kinds, draw = {}, np.random.default_rng(0)
    for clip in clips[::3]:
        samples, rate = soundfile.read(clip)
        noise = 0.1 * samples.std() * draw.standard_normal(samples.shape)
        made = {
            "clips, 30 dB quieter": (0.0316 * samples, rate),
            "clips, noise at -20 dB": (samples + noise, rate),
            "clips at 8 kHz": (soxr.resample(samples, rate, 8000), 8000),
        }
        for number, (kind, (wave, hz)) in enumerate(made.items()):
            path = folder / f"{Path(clip).stem}-{number}.wav"
            soundfile.write(path, wave, hz, subtype="FLOAT")
            kinds[str(path)] = kind
    return kinds


class Rules:
    """Counts of queries, of those that a rule finds nothing close to, and what the best cosine is."""

    def __init__(self):
        self.counts = {}

    def add(self, kind, store, query, where):
        found = store.similar(query, 5, where=where)
        said = not_close(store, query, found)
        count = self.counts.setdefault(kind, {"queries": 0, "cosine": 0, "said": 0, "best": []})
        count["queries"] += 1
        count["cosine"] += found[0].score < max(0.2, store.usual_nearness)
        count["said"] += bool(said)
        count["best"].append(found[0].score)

    def show(self):
        for kind, count in self.counts.items():
            best = count.pop("best")
            count["highest cosine"] = round(max(best), 3)
            print(f"{kind:32s}{count}")
        return self.counts


def main():
    rules = Rules()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library.embed_library(demo.ROOT / "clips", folder / "clips.parquet")
        store = search.load(folder / "clips.parquet")
        (folder / "made").mkdir()
        paths = [row.path for row in store.filter(search.Filter())]
        with (demo.ROOT / "clips.csv").open(newline="", encoding="utf-8") as stream:
            of = {row["file"]: row["soundtrack"] for row in csv.DictReader(stream)}
        own = {path: of[Path(path).name] for path in paths}
        for path in paths:
            same = tuple(other for other in paths if own[other] == own[path])
            rules.add("clips", store, path, search.Filter())
            rules.add("clips, other soundtracks", store, path, search.Filter(without_paths=same))
        kinds = altered(folder / "made", paths) | signals(folder / "made")
        library.embed_library(folder / "made", folder / "made.parquet")
        made = library.read(folder / "made.parquet")
        for path, vector in zip(made.paths, made.vectors, strict=True):
            clip = Path(path).stem.rpartition("-")[0]
            same = tuple(other for other in paths if Path(other).stem == clip)
            rules.add(kinds[path], store, vector, search.Filter(without_paths=same))
    keep("closeness", {"model": embed.load().identity, "queries": rules.show()})


if __name__ == "__main__":
    main()

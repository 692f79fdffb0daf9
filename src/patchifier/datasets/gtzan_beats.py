"""Beats and downbeats of GTZAN, as MARBLE publishes them: a frame-wise task.

=========  =========================================================================================
size       the fault-filtered tracks of GTZAN for which there are beats; 30 s each
audio      GTZAN's: wav, 22,050 Hz, mono, 16-bit
origin     MARBLE's copy of GTZAN, https://huggingface.co/datasets/m-a-p/GTZAN; beats by Marchand,
           Fresnel and Peeters
licence    not stated; research use, audio must not be passed on
citation   Marchand, Fresnel, Peeters: GTZAN-Rhythm: extending the GTZAN test-set with beat,
           downbeat and swing annotations. ISMIR late-breaking, 2015
files      GTZANBeatTracking.train.jsonl, .val.jsonl and .test.jsonl beside
           genres/GENRE/GENRE.000NN.wav, which they call data/GTZAN/genres/...
=========  =========================================================================================

Traps
-----
* The label of a row is an object with the times of beats and of downbeats apart: a downbeat is a
  beat too and counts once.
* Files carry GTZAN's own: ``jazz.00054`` cannot be read in some copies; ``._`` files lie beside the
  real ones.
"""

from dataclasses import replace
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Dataset, gtzan, manifest
from patchifier.datasets.sheet import Sheet, Variant

FILES = tuple(f"GTZANBeatTracking.{split}.jsonl" for split in ("train", "val", "test"))


def read(root: Path, variant: str) -> Dataset:
    """List the clips with their beats, whether their files exist or not."""
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise RequestError(
            f"{root / missing[0]} is not there, expected MARBLE's tables of GTZAN's beats: "
            f"{', '.join(FILES)}."
        )
    dataset, clips = manifest.load_all([root / name for name in FILES], "gtzan-beats"), []
    for clip in dataset.clips:
        genre, file = Path(clip.path).parts[-2:]
        path, track = root / "genres" / genre / file, Path(file).stem
        clips.append(replace(clip, path=str(path), id=track, group=track))
    return replace(dataset, clips=tuple(clips))


SHEET = Sheet(
    name="gtzan-beats",
    title="GTZAN beats (MARBLE)",
    home="https://huggingface.co/datasets/m-a-p/GTZAN",
    licence="not stated; research use, audio must not be passed on",
    citation="Marchand, Fresnel, Peeters: GTZAN-Rhythm. ISMIR late-breaking, 2015",
    read=read,
    variants={"marble": Variant("beats and downbeats, MARBLE's split")},
    known_bad=gtzan.SHEET.known_bad,
    steps="Get the data set m-a-p/GTZAN from Hugging Face as the folder data/GTZAN and name that "
    "folder with --root.",
)

"""What every script here ends with: run an encoder over a cache and leave one .npy file for each clip, as ``features:DIR`` reads them.

An outsider lives in an environment of its own, with its own versions of everything; the files are how it meets the others.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one clip at a time gains little from more

import numpy as np

from patchifier.cache import Cache
from patchifier.config import RequestError
from patchifier.evaluate.encoders import Encoder
from patchifier.io import replaced_file


def parser(doc: str) -> argparse.ArgumentParser:
    """Command line that all scripts share."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("cache", help="folder that 'patchifier prepare' made")
    made.add_argument(
        "--out",
        required=True,
        help="folder for the features; clips that have a file there are not computed again",
    )
    return made


def write(encoder: Encoder, cache: str, out: str) -> int:
    """Write OUT/<clip id>.npy for every clip; 1 if some could not be computed, each named on standard error."""
    data, failed = Cache(cache), []
    for index, clip in enumerate(data.clips):
        path = _path(Path(out), clip.id)
        if path.exists():
            continue
        try:
            features = encoder.encode(data, [index])[0]
        except (
            Exception
        ) as error:  # other people's code may raise anything, and one clip must not end the run
            failed.append(clip.id)
            print(f"{encoder.name}: {clip.id}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        with replaced_file(path) as new, new.open("wb") as stream:
            np.save(stream, features, allow_pickle=False)
    print(
        f"{encoder.name}: {len(data.clips) - len(failed)} of {len(data.clips)} clips in {out}; compare it as features:{out}"
    )
    return 1 if failed else 0


def _path(out: Path, name: str) -> Path:
    path = out / f"{name}.npy"
    if not path.resolve().is_relative_to(out.resolve()):
        raise RequestError(f"clip id {name!r} leads out of {out}, expected a plain name.")
    return path

"""How much audio a file holds, counted from its frames and pages.

A header may be missing, wrong or an estimate, and a decoder that believes it loses audio without a
message. This package reads mp3 (frames), Ogg (pages), FLAC (the last frame), wav, RF64 and AIFF
(chunks). It decodes nothing, reads in pieces of bounded size, and allocates nothing by a length
that a file states.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from patchifier.containers import chunks, flac, mpeg, ogg
from patchifier.containers.payload import payload_digest
from patchifier.containers.stream import Stream, View, after_id3, read

__all__ = ["Stream", "View", "examine", "payload_digest"]

UNCOUNTED = (
    b"FORM",
    b"caff",
    b".snd",
    b"riff",
    b"wvpk",
    b"TTA1",
    b"MAC ",
    b"\x1aE\xdf\xa3",
    b"0&\xb2u",
)


def examine(path: str | Path) -> tuple[Stream, ...]:
    """Find the streams of an audio file, and count how much audio each holds.

    Parameters
    ----------
    path : str or Path
        The file. It is read in pieces and not decoded.

    Returns
    -------
    tuple of Stream
        In the file's order. Several for an Ogg file of several links. For a container that is not
        counted here none, or what lies behind an ID3 tag.

    Examples
    --------
    >>> import numpy as np, soundfile
    >>> soundfile.write("song.wav", np.zeros(44_100), 22_050)
    >>> examine("song.wav")[0].length_s
    2.0
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = after_id3(file)
        try:
            found = _streams(file, start, size)
        except (struct.error, IndexError):  # the file ends inside a header
            found = ()
    return found or ((Stream(start, size),) if 0 < start < size else ())


def _streams(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    magic = read(file, start, 12)
    if magic[:4] == b"OggS":
        return tuple(ogg.links(file, size))
    if magic[:4] == b"fLaC":
        return flac.streams(file, start, size)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        return chunks.wav(file, start, size)
    if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        return chunks.aiff(file, start, size)
    if magic.startswith(UNCOUNTED) or magic[4:8] == b"ftyp":
        return ()
    return mpeg.streams(file, start, size)

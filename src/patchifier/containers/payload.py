"""A digest of the audio in a file without its tags: a file that is moved or retagged keeps it.

Nothing is decoded. The file is read once, in pieces of bounded size.

=====================  =============================================================
Container              What the digest is about
=====================  =============================================================
mp3, WavPack, APE      all bytes but ID3 at both ends and APE tags
FLAC                   the frames, without any metadata block
Ogg                    the packets of each stream, without its comments
MP4                    the contents of the mdat atoms
ASF (wma)              the data object
wav, RF64, AIFF        the samples, and the chunk that says what they are
any other              all bytes but ID3 at both ends and APE tags
=====================  =============================================================

Sources: ID3v2.4 and ID3v1 (id3.org), APEv2 (wiki.hydrogenaud.io), Lyrics3 v2 (id3.org), RFC 9639
(FLAC), RFC 3533 (Ogg), ISO/IEC 14496-12 (MP4), the ASF specification (Microsoft, 2004).
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from patchifier.containers import chunks, ogg
from patchifier.containers.stream import Stream, after_id3, before_tags, read

PIECE = 2**20  # bytes that are read at once
DIGITS = 16  # of a digest
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # of an object: header, data
ASF_DATA = b"6" + ASF[1:]
MOST_BLOCKS = 2**16  # that are followed: a file of empty ones would take minutes
Ranges = list[tuple[int, int]]  # bytes of a file: first, and the one behind the last


def payload_digest(path: str | Path) -> str:
    """Digest of the audio in a file, without its tags.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    str
        16 hexadecimal digits. Files with the same encoded audio have the same, wherever they lie
        and whatever their tags are. Other encodings of one recording have other digests.

    Raises
    ------
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> len(payload_digest("music/one.ogg"))
    16
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = after_id3(file)
        digest = hashlib.sha256()  # the processor's own instructions: twice as fast as blake2b
        for piece in _pieces(file, start, size):
            digest.update(piece)
    return digest.hexdigest()[:DIGITS]


def _pieces(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """Bytes of the audio; those of the whole file without tags where a container is damaged."""
    found = 0
    if read(file, start, 4) == b"OggS":
        for packet in _ogg_packets(file, start, size):
            found += len(packet)
            yield packet
    if found:
        return
    for first, end in _ranges_or_all(file, start, size):
        for at in range(first, end, PIECE):
            yield read(file, at, min(PIECE, end - at))


def _ranges_or_all(file: BinaryIO, start: int, size: int) -> Ranges:
    """Where the audio lies; all bytes without tags, or all, where nothing else is known."""
    try:
        ranges = _ranges(file, start, size)
    except (struct.error, IndexError):  # the file ends inside a header
        ranges = []
    for found in (ranges, [_without_tags(file, start, size)]):
        if any(first < end for first, end in found):
            return found
    return [(0, size)]


def _ranges(file: BinaryIO, start: int, size: int) -> Ranges:
    """Where the audio lies in a container that is known; nothing for others."""
    magic = read(file, start, 12)
    if magic[:4] == b"fLaC":
        return _flac_frames(file, start, size)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
        samples = chunks.wav(file, start, size)
        return _samples(file, "<", b"fmt ", start, size, samples)
    if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        samples = chunks.aiff(file, start, size)
        return _samples(file, ">", b"COMM", start, size, samples)
    if magic == ASF[:12]:
        return _asf_data(file, start, size)
    return _mp4_data(file, start, size) if magic[4:8] == b"ftyp" else []


def _samples(
    file: BinaryIO, order: str, form: bytes, start: int, size: int, streams: tuple[Stream, ...]
) -> Ranges:
    """Bytes of the samples of a wav or AIFF, and of the chunk `form` that says what they are."""
    about = [
        (at, min(size, at + length))
        for name, at, length in chunks.chunks(file, order, start, size)
        if name == form
    ]
    return [*about[:1], *((stream.first, stream.end) for stream in streams)] if streams else []


def _flac_frames(file: BinaryIO, start: int, size: int) -> Ranges:
    """Bytes behind the metadata blocks (RFC 9639, section 8)."""
    at = start + 4
    for _ in range(MOST_BLOCKS):
        head = read(file, at, 4)
        at += 4 + int.from_bytes(head[1:4], "big")
        if head[0] & 128:  # the last block
            at = min(at, size)
            return [(at, before_tags(file, at, size))]
    return []


def _mp4_data(file: BinaryIO, start: int, size: int) -> Ranges:
    """Contents of the mdat atoms."""
    found, at = Ranges(), start
    for _ in range(MOST_BLOCKS):
        if at + 8 > size:
            break
        head = read(file, at, 16)
        length, name = struct.unpack_from(">I4s", head)
        inner = 8
        if length == 1:
            (length,), inner = struct.unpack_from(">Q", head, 8), 16
        length = length or size - at  # 0: up to the end
        if length < inner:
            break
        if name == b"mdat":
            found.append((at + inner, min(size, at + length)))
        at += length
    return found


def _asf_data(file: BinaryIO, start: int, size: int) -> Ranges:
    """Packets of the data object (ASF specification, section 2)."""
    at = start
    for _ in range(MOST_BLOCKS):
        if at + 24 > size:  # a length of 64 bits leads to where no file can be read
            break
        name, length = struct.unpack("<16sQ", read(file, at, 24))
        if name == ASF_DATA:
            return [(at + 24, min(size, at + max(24, length)))]
        at += max(24, length)
    return []


def _without_tags(file: BinaryIO, start: int, size: int) -> tuple[int, int]:
    """First byte behind the tags at the beginning, and the byte where those at the end begin."""
    while (head := read(file, start, 32))[:8] == b"APETAGEX" and len(head) == 32:
        start += 32 + int.from_bytes(head[12:16], "little")
    start = min(start, size)
    return start, before_tags(file, start, size)


# --- Ogg ---


def _ogg_packets(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """Contents of the packets of all streams, without those of comments.

    A tagger writes the pages of the comments anew and counts all later pages anew, so headers of
    pages do not take part.
    """
    packets, comments = dict[int, int](), dict[int, range]()
    for page in ogg.pages(file, start, size):
        serial, lacing = page.serial, page.lacing
        body = read(file, page.body, sum(lacing))
        if page.begins:
            packets[serial], comments[serial] = 0, _comment_packets(body)
        first = packets.setdefault(serial, 0)
        packets[serial] += sum(value < 255 for value in lacing)
        if first >= comments.setdefault(serial, range(0)).stop:
            yield body
        else:
            yield from _without(body, lacing, first, comments[serial])


def _without(body: bytes, lacing: bytes, number: int, comments: range) -> Iterator[bytes]:
    """Packets on a page, the first of which has a number, without those of comments."""
    at = 0
    for value in lacing:
        if number not in comments:
            yield body[at : at + value]
        at += value
        number += value < 255


def _comment_packets(first: bytes) -> range:
    """Which packets of a stream are about it, given the beginning of its first one."""
    if first[:5] == b"\x7fFLAC":
        return range(1, 1 + max(1, int.from_bytes(first[7:9], "big")))
    return range(1, 2)

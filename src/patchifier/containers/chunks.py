"""Chunks of wav, RF64 (EBU Tech 3306) and AIFF."""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from patchifier.containers.stream import Stream, read

# Bytes behind the data chunk that are no chunk are a tag if they are shorter, else lost audio.
FOREIGN_S = 1.0
PCM_TAGS = {1, 3, 6, 7, 0xFFFE}  # integers, floats, A-law, mu-law, extensible
PCM_AIFF = {b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32"}


def chunks(file: BinaryIO, order: str, start: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the content and stated bytes of each chunk of a RIFF or FORM file."""
    at = start + 12
    while len(head := read(file, at, 8)) == 8 and at < size:
        name, length = struct.unpack(f"{order}4sI", head)
        yield name, at + 8, length
        at += 8 + length + length % 2


def wav(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    """Stream of a wav or RF64 file; none if it has no samples' format or chunk."""
    block, rate, pcm, long_size = 0, 0, False, None
    for name, at, length in chunks(file, "<", start, size):
        if name == b"ds64":
            (long_size,) = struct.unpack("<Q", read(file, at + 8, 8).ljust(8, b"\0"))
        if name == b"fmt " and length >= 16:
            tag, _, rate, _, block = struct.unpack("<HHIIH", read(file, at, 14).ljust(14, b"\0"))
            pcm = tag in PCM_TAGS
        if name == b"data" and rate and block:
            stated = long_size if long_size is not None else length
            held = _held(file, "<", at, stated, size, foreign=int(FOREIGN_S * rate * block))
            head = b""
            if held > stated and long_size is None and held < 2**32 - at:
                head = read(file, start, at - start)
                head = head[:4] + struct.pack("<I", len(head) - 8 + held) + head[8:-4]
                head += struct.pack("<I", held)
            length_s = held // block / rate if pcm else None
            return (Stream(at, at + held, length_s, head=head, note=_chunk_note(stated, held)),)
    return ()


def aiff(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    """Stream of an AIFF file whose samples are not compressed."""
    block, rate = 0, 0.0
    for name, at, length in chunks(file, ">", start, size):
        if name == b"COMM" and length >= 18:
            common = read(file, at, 22).ljust(22, b"\0")
            channels, _, bits = struct.unpack(">hIh", common[:8])
            rate = _extended(common[8:18])
            block = channels * ((bits + 7) // 8) if length < 22 or common[18:] in PCM_AIFF else 0
        if name == b"SSND" and rate > 0 and block > 0:
            at, stated = min(at + 8, size), max(0, length - 8)
            held = _held(file, ">", at, stated, size, foreign=int(FOREIGN_S * rate * block))
            head = b""
            if stated < held < 2**31:
                head = read(file, start, at - start)
                head = head[:4] + struct.pack(">I", len(head) - 8 + held) + head[8:-12]
                head += struct.pack(">I", held + 8) + read(file, at - 8, 8)
            length_s, note = held // block / rate, _chunk_note(stated, held)
            return (Stream(at, at + held, length_s, head=head, note=note),)
    return ()


def _chunk_note(stated: int, held: int) -> str:
    return f"its data chunk states {stated} bytes, it has {held}" if held > stated else ""


def _held(file: BinaryIO, order: str, at: int, stated: int, size: int, *, foreign: int) -> int:
    """Bytes of samples that a file holds from `at` on, whatever its data chunk states."""
    rest = max(0, size - at)
    if stated >= rest:
        return rest
    behind = at + stated + stated % 2
    if _chunks_follow(file, order, behind, size):
        return stated
    return rest if stated == 0 or rest - stated > foreign else stated


def _chunks_follow(file: BinaryIO, order: str, at: int, size: int) -> bool:
    """Whether a chunk or a tag begins at `at`, or the file ends there."""
    head = read(file, at, 8)
    if len(head) < 8 or head.startswith((b"ID3", b"TAG", b"APETAGEX")):
        return True
    name, length = struct.unpack(f"{order}4sI", head)
    return bool(re.fullmatch(rb"[ -~]{4}", name)) and at + 8 + length <= size + 1


def _extended(data: bytes) -> float:
    """Read a number of 80 bits, as AIFF states its rate."""
    exponent, mantissa = struct.unpack(">HQ", data)
    power = (exponent & 0x7FFF) - 16383 - 63
    return mantissa * 2.0**power if -63 <= power < 0 else 0.0  # from 1 to 2^63 Hz: others are none

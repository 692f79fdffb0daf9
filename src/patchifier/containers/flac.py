"""The last frame of a FLAC says how long it is (RFC 9639)."""

import re
import struct
from typing import BinaryIO, NamedTuple

from patchifier.containers.stream import Stream, read

TAIL = 2**18  # bytes at the end in which the last two frames must lie


class StreamInfo(NamedTuple):
    """What the STREAMINFO block of a FLAC says."""

    shortest: int  # samples of a block
    longest: int
    rate: int
    total: int

    @classmethod
    def read(cls, block: bytes) -> "StreamInfo":
        """Read the block, without its header of 4 bytes."""
        shortest, longest = struct.unpack_from(">HH", block)
        packed = int.from_bytes(block[10:18], "big")
        return cls(shortest, longest, packed >> 44, packed & (2**36 - 1))


def streams(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    """Stream of a FLAC that begins at `start`, by its last frame and its header."""
    block = read(file, start + 8, 34)
    if len(block) < 34:
        return ()
    info = StreamInfo.read(block)
    counted = _samples(read(file, max(start, size - TAIL), TAIL), info)
    rate, samples = info.rate or 1, counted or info.total
    head = b""
    if counted and counted > info.total:
        packed = int.from_bytes(block[10:18], "big") >> 36 << 36 | counted & (2**36 - 1)
        head = b"fLaC" + read(file, start + 4, 4) + block[:10] + packed.to_bytes(8, "big")
        head += block[18:]
    length_s = samples / rate if samples else None
    stated_s = info.total / rate if info.total else None
    note = f"its header states {info.total} samples, it has {samples}" if head and stated_s else ""
    tolerance_s = info.longest / rate
    return (Stream(start + len(head), size, length_s, tolerance_s, stated_s, head=head, note=note),)


def _samples(tail: bytes, info: StreamInfo) -> int | None:
    """Samples up to the end of the last frame; None if unknown.

    Bytes may look like a header: one counts if it continues another one.
    """
    before, found = set[int](), None
    for match in re.finditer(rb"\xff[\xf8\xf9]", tail):
        header = _header(tail[match.start() : match.start() + 16], info)
        if header is None:
            continue
        first, behind = header
        if first in before or (first == 0 and found is None):
            found = behind
        before.add(behind)
    return found


def _header(data: bytes, info: StreamInfo) -> tuple[int, int] | None:
    """First sample of a frame, and the one behind its last (RFC 9639, section 9.1).

    None if this is no frame header.
    """
    if len(data) < 16:
        return None
    size_code, rate_code, width = data[2] >> 4, data[2] & 15, 8 - (~data[4] & 0xFF).bit_length()
    if size_code == 0 or rate_code == 15 or data[3] >> 4 > 10 or data[3] & 1 or width in (1, 8):
        return None
    length = max(1, width)
    number = data[4] & (0x7F if width == 0 else 0x7F >> width)
    for byte in data[5 : 4 + length]:
        number = number << 6 | byte & 63
    at = 4 + length
    block = {1: 192, 6: 1 + data[at], 7: 1 + (data[at] << 8 | data[at + 1])}.get(size_code)
    block = block or (576 << size_code - 2 if size_code < 6 else 1 << size_code)
    at += {6: 1, 7: 2}.get(size_code, 0) + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _crc8(data[:at]) != data[at]:
        return None
    first = number if data[1] & 1 else number * info.longest
    return first, first + block


def _crc8(data: bytes) -> int:
    """CRC with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 128 else crc << 1) & 255
    return crc

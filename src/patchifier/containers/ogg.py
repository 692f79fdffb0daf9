"""Pages of Ogg: Vorbis, Opus and FLAC, in one link or several.

Sources: RFC 3533 (Ogg), RFC 7845 (Opus in Ogg), RFC 6716 (Opus), the Vorbis I specification.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from patchifier.containers.flac import StreamInfo
from patchifier.containers.stream import Stream, read

OGG_HEADER = struct.Struct("<4sBBqIIIB")
OPUS_LOST = 480  # samples at 48 kHz


@dataclass
class _Link:
    """The audio stream of one link while its pages are read."""

    first: int  # byte
    serial: int
    rate: int
    delay: int  # samples that are not played
    longest: int  # samples that may be missing, of other codecs those of a packet at most
    opus: bool
    start: int | None = None  # granule position at which the audio begins
    last: int = 0

    def stream(self, end: int, cut: bool) -> Stream:
        """Stream from byte `first` to byte `end`; `cut` if the file ends inside a page."""
        samples = self.last - (self.start or 0) - (0 if self.start else self.delay)
        tolerance_s = self.longest / self.rate
        return Stream(self.first, end, max(0, samples) / self.rate, tolerance_s, cut=cut)


def links(file: BinaryIO, size: int) -> Iterator[Stream]:
    """Streams of an Ogg file, one for each link, by the first audio stream in each."""
    link: _Link | None = None
    began, beginning, at = 0, False, 0
    while (page := next_page(file, at, size)) is not None:
        offset, header, lacing = page
        _, _, flags, granule, serial, *_ = header
        body = offset + OGG_HEADER.size + len(lacing)
        at = body + sum(lacing)
        if flags & 2 and not beginning:  # the first page of a link
            if link:
                yield link.stream(offset, False)
            link, began = None, offset
        beginning = bool(flags & 2)
        if beginning and link is None:
            link = _audio(read(file, body, 64), began, serial)
        elif link and serial == link.serial and granule > 0 and at <= size:  # it is signed
            if link.start is None:
                link.start = _late_start(file, body, lacing, granule, link)
            link.last = max(link.last, granule)
    if link:
        yield link.stream(size, at > size)


def next_page(
    file: BinaryIO, at: int, size: int
) -> tuple[int, tuple[bytes, int, int, int, int, int, int, int], bytes] | None:
    """Offset, header and lacing values of the next page; None at the end of the file."""
    while at < size:
        data = read(file, at, OGG_HEADER.size + 255)
        if data[:4] == b"OggS" and len(data) >= OGG_HEADER.size:
            header = OGG_HEADER.unpack_from(data)
            return at, header, data[OGG_HEADER.size : OGG_HEADER.size + header[-1]]
        data = read(file, at + 1, 2**16)
        found = data.find(b"OggS")
        at += 1 + (found if found >= 0 else max(1, len(data) - 3))
    return None


def _audio(packet: bytes, first: int, serial: int) -> _Link | None:
    """Read the first packet of a stream; None if it is no audio."""
    if packet[:7] == b"\x01vorbis":
        (rate,) = struct.unpack_from("<I", packet, 12)
        long_block = 1 << (packet[28] >> 4)
        return _Link(first, serial, rate or 1, 0, long_block, False)
    if packet[:8] == b"OpusHead":
        (delay,) = struct.unpack_from("<H", packet, 10)
        return _Link(first, serial, 48_000, delay, OPUS_LOST, True)
    if packet[:5] == b"\x7fFLAC" and packet[9:13] == b"fLaC":
        info = StreamInfo.read(packet[17:])
        return _Link(first, serial, info.rate or 1, 0, info.longest, False)
    return None


def _late_start(file: BinaryIO, body: int, lacing: bytes, granule: int, link: _Link) -> int:
    """Granule position at which the audio begins: above 0 if it was recorded from its middle on."""
    ends = [number for number, length in enumerate(lacing) if length < 255]
    if not link.opus:
        return granule if granule > len(ends) * link.longest else 0
    data, samples, at = read(file, body, sum(lacing)), 0, 0
    for before, end in zip([-1, *ends], ends):
        length = sum(lacing[before + 1 : end + 1])
        samples += _opus_samples(data[at : at + length])
        at += length
    return max(0, granule - samples)


def _opus_samples(packet: bytes) -> int:
    """Samples of an Opus packet at 48 kHz (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    return frame * (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]

"""Pages of Ogg: Vorbis, Opus and FLAC, in one link or several.

Sources: RFC 3533 (Ogg), RFC 7845 (Opus in Ogg), RFC 6716 (Opus), the Vorbis I specification.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

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
    began, beginning, end = 0, False, 0
    for page in pages(file, 0, size):
        end = page.body + sum(page.lacing)
        if page.begins and not beginning:  # the first page of a link
            if link:
                yield link.stream(page.first, False)
            link, began = None, page.first
        beginning = page.begins
        if beginning and link is None:
            link = _audio(read(file, page.body, 64), began, page.serial)
        elif link and page.serial == link.serial and page.granule > 0 and end <= size:
            if link.start is None:
                link.start = _late_start(file, page, link)
            link.last = max(link.last, page.granule)
    if link:
        yield link.stream(size, end > size)


class Page(NamedTuple):
    """Header of a page, and where its content begins."""

    first: int  # byte
    body: int  # byte
    lacing: bytes
    begins: bool  # whether it is the first one of a stream
    granule: int  # it is signed
    serial: int


def pages(file: BinaryIO, at: int, size: int) -> Iterator[Page]:
    """Yield the pages from a byte on."""
    while at < size:
        data = read(file, at, OGG_HEADER.size + 255)
        if data[:4] == b"OggS" and len(data) >= OGG_HEADER.size:
            _, _, flags, granule, serial, _, _, count = OGG_HEADER.unpack_from(data)
            lacing = data[OGG_HEADER.size : OGG_HEADER.size + count]
            body = at + OGG_HEADER.size + len(lacing)
            yield Page(at, body, lacing, bool(flags & 2), granule, serial)
            at = body + sum(lacing)
            continue
        data = read(file, at + 1, 2**16)
        found = data.find(b"OggS")
        at += 1 + (found if found >= 0 else max(1, len(data) - 3))


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


def _late_start(file: BinaryIO, page: Page, link: _Link) -> int:
    """Granule position at which the audio begins: above 0 if it was recorded from its middle on."""
    lacing, granule = page.lacing, page.granule
    ends = [number for number, length in enumerate(lacing) if length < 255]
    if not link.opus:
        return granule if granule > len(ends) * link.longest else 0
    data, samples, at = read(file, page.body, sum(lacing)), 0, 0
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

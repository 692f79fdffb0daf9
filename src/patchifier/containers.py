"""How much audio a file holds, counted from its frames and pages, and how a decoder gets to read all of it.

A header may be missing, wrong or an estimate, and a decoder that believes it loses audio without a word. This module reads
mp3 (frames), Ogg (pages), FLAC (the last frame), wav, RF64 and AIFF (chunks), and decodes nothing. It reads a file in
pieces of bounded size. Lengths that a file states are compared with its bytes and never used to allocate memory.

Sources: ISO/IEC 11172-3 and 13818-3 (mp3), the LAME tag (gabriel.mp3-tech.org/mp3infotag.html), RFC 3533 (Ogg), RFC 7845
(Opus in Ogg), the Vorbis I specification, RFC 9639 (FLAC), EBU Tech 3306 (RF64).
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

CHUNK = 2**20  # bytes of an mp3 that are read at once
SEARCH = 2**18  # bytes in which the first frame of an mp3 must lie
TAIL = 2**18  # bytes at the end of a FLAC in which its last two frames must lie
UNCOUNTED = (b"caff", b".snd", b"riff", b"wvpk", b"TTA1", b"MAC ", b"\x1aE\xdf\xa3", b"0&\xb2u")
FOREIGN_S = 1.0  # bytes behind the data chunk that are no chunk: a tag if they are shorter, lost audio if longer


@dataclass(frozen=True)
class Stream:
    """A part of a file that a decoder can read as a file of its own. Most files are one stream.

    Attributes
    ----------
    first, end : int
        Bytes of the part: from `first` to before `end`.
    length_s : float or None
        Length of the audio that these bytes hold; None if it cannot be counted.
    tolerance_s : float
        Decoders may give so much less at the ends of a whole stream: their delay, an incomplete frame.
    stated_s : float or None
        Length that the header states, if it states one that says whether the file is cut off.
    cut : bool
        Whether the file ends inside a page.
    head : bytes
        A correct header, where that of the file states no length or too little. With it before the bytes from `first` on,
        a decoder that believes headers reads all of them.
    note : str
        What is wrong with the header, to be told to the user; empty for what is common.
    """

    first: int
    end: int
    length_s: float | None = None
    tolerance_s: float = 0.0
    stated_s: float | None = None
    cut: bool = False
    head: bytes = b""
    note: str = ""


class View(io.RawIOBase):
    """A stream as a file object of its own: its corrected header, then its bytes.

    Parameters
    ----------
    path : Path
        The file.
    stream : Stream
        The part of it.
    """

    def __init__(self, path: Path, stream: Stream) -> None:
        self.file, self.stream, self.at = path.open("rb"), stream, 0
        self.size = len(stream.head) + stream.end - stream.first

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; return it."""
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        """Return the offset."""
        return self.at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as there are bytes; return how many."""
        count = max(0, min(len(buffer), self.size - self.at))
        found = self.stream.head[self.at : self.at + count]
        if len(found) < count:
            self.file.seek(self.stream.first + self.at + len(found) - len(self.stream.head))
            found += self.file.read(count - len(found))
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def examine(path: str | Path) -> tuple[Stream, ...]:
    """Find the streams of an audio file, and count how much audio each holds.

    Parameters
    ----------
    path : str or Path
        The file. It is read in pieces and not decoded.

    Returns
    -------
    tuple of Stream
        In the file's order. Several for an Ogg file of several links; none for a container that is not counted here.

    Examples
    --------
    >>> import numpy as np, soundfile
    >>> soundfile.write("song.wav", np.zeros(44_100), 22_050)
    >>> examine("song.wav")[0].length_s
    2.0
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = _after_id3(file)
        magic = _read(file, start, 12)
        if magic[:4] == b"OggS":
            return tuple(_ogg_links(file, size))
        if magic[:4] == b"fLaC":
            return _flac(file, start, size)
        if magic[:4] in (b"RIFF", b"RF64") and magic[8:] == b"WAVE":
            return _wav(file, size)
        if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
            return _aiff(file, size)
        if magic.startswith(UNCOUNTED) or magic[4:8] == b"ftyp":
            return ()
        return _mp3(file, start, size)


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _after_id3(file: BinaryIO) -> int:
    """Offset behind the ID3v2 tags at the beginning of a file."""
    offset = 0
    while (head := _read(file, offset, 10))[:3] == b"ID3" and len(head) == 10:
        offset += _id3_size(head)
    return offset


def _id3_size(head: bytes) -> int:
    """Bytes of an ID3v2 tag with its header, and its footer if it has one."""
    size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    return size + (20 if head[5] & 16 else 10)


# --- mp3 ---

KBIT = {  # (MPEG 1, layer): bit rates in kbit/s by their index, 0 for free format
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
CHAIN = 3  # consecutive frames that tell a frame from bytes that look like one
MP3_FRAMES_LOST = 3  # at the start the bits of earlier frames may be missing, at the end a frame may be incomplete


class _Layout(NamedTuple):
    """What all frames of an MPEG audio stream share."""

    second: int  # byte of the header: version, layer, protection
    rate: int
    samples: int  # of a frame
    sizes: tuple[int, ...]  # bytes of a frame by the third byte of its header; 0 if that is none


def _layout(head: bytes, free_size: int = 0) -> _Layout | None:
    """Layout that a frame header stands for; `free_size`: bytes of a frame of free format without padding."""
    version, layer, rate_index = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3), (head[2] >> 2) & 3
    if head[0] != 255 or head[1] < 0xE0 or version == 1 or layer == 4 or rate_index == 3:
        return None
    first_version = version == 3
    samples = {1: 384, 2: 1152, 3: 1152 if first_version else 576}[layer]
    rate, slot = RATES[version][rate_index], 4 if layer == 1 else 1
    sizes = [0] * 256
    for index, kbit in enumerate(KBIT[first_version, layer]):
        for padding in (0, 1):
            size = (samples // 8 * kbit * 1000 // rate // slot + padding) * slot
            size = size if kbit else (free_size + padding * slot if free_size else 0)
            for private in (0, 1):
                sizes[index << 4 | rate_index << 2 | padding << 1 | private] = size
    return _Layout(head[1], rate, samples, tuple(sizes))


def _walk(data: bytes, at: int, layout: _Layout) -> tuple[int, int]:
    """Follow frames from `at` on: where the next one would begin, and how many there are."""
    second, sizes, last, count = layout.second, layout.sizes, len(data) - 3, 0
    while (
        at < last and data[at] == 255 and data[at + 1] == second and (size := sizes[data[at + 2]])
    ):
        at += size
        count += 1
    return at, count


def _sync(data: bytes, at: int, *, final: bool) -> tuple[int, _Layout] | None:
    """Find the next frame that others follow. At the end of a file, `final`, fewer may follow."""
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        layout = _layout(data[at : at + 4])
        if layout and data[at + 2] < 16:
            layout = _layout(data[at : at + 4], _free_size(data, at))
        if layout:
            behind, count = _walk(data, at, layout)
            if count >= CHAIN or (count and final and behind == len(data)):
                return at, layout
        at += 1
    return None


def _free_size(data: bytes, at: int) -> int:
    """Bytes of a frame of free format without padding: up to the next header of the same kind."""
    padding = (data[at + 2] >> 1) & 1
    behind = data.find(data[at : at + 2], at + 24, at + 8192)
    while behind > 0 and (data[behind + 2 : behind + 3] or b"\0")[0] & 0xFD != data[at + 2] & 0xFD:
        behind = data.find(data[at : at + 2], behind + 1, at + 8192)
    return behind - at - padding if behind > 0 else 0


def _mp3(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    found = _sync(_read(file, start, SEARCH), 0, final=start + SEARCH >= size)
    if found is None:
        return ()
    first, layout = start + found[0], found[1]
    length = layout.sizes[_read(file, first, 3)[2]]
    stated, trimmed = _stated_frames(_read(file, first, length), layout)
    seconds, frames, end = _count_mp3(file, first, size, layout)
    frame_s = layout.samples / layout.rate
    if stated is not None:  # the frame of the tag holds no audio
        seconds, frames, first = seconds - frame_s, frames - 1, first + length
    trimmed_s = trimmed / layout.rate if stated == frames else 0.0
    stream = Stream(
        first,
        end,
        max(0.0, seconds - trimmed_s),
        MP3_FRAMES_LOST * frame_s,
        stated and stated * frame_s - trimmed_s,
    )
    if stated and stated >= frames:
        return (stream,)
    note = f"its tag states {stated} frames, it has {frames}" if stated else ""
    head = _xing_frame(_read(file, first, 4), layout, frames)
    return (replace(stream, head=head, note=note),)


def _count_mp3(file: BinaryIO, start: int, size: int, layout: _Layout) -> tuple[float, int, int]:
    """Seconds and number of the whole frames from `start` on, and where the last one ends."""
    seconds, frames, end, at = 0.0, 0, start, start
    while at < size - 3:
        data = _read(file, at, CHUNK)
        behind, count = _walk(data, 0, layout)
        if at + behind > size:  # the last frame is incomplete
            return seconds + (count - 1) * layout.samples / layout.rate, frames + count - 1, size
        if count:
            seconds, frames = seconds + count * layout.samples / layout.rate, frames + count
            end = at = at + behind
            if behind > len(data) - 4:
                continue
            data, behind = data[behind:], 0
        found = _sync(data, 0, final=at + len(data) >= size)
        if found:
            at, layout = at + found[0], found[1]
        elif at + len(data) >= size:
            break
        else:
            at += max(1, len(data) - 8192 * CHAIN)  # frames that this piece cuts are in the next
    return seconds, frames, end


def _side_info(head: bytes) -> int:
    """Bytes of a layer III frame's side information."""
    first_version, mono = head[1] & 8, head[3] >> 6 == 3
    return (17 if mono else 32) if first_version else (9 if mono else 17)


def _stated_frames(frame: bytes, layout: _Layout) -> tuple[int | None, int]:
    """Number of frames that a Xing, Info or VBRI tag states, and samples of the encoder's delay and padding.

    None if the frame is none with a tag; 0 if its tag states no number.
    """
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return struct.unpack(">I", frame[50:54])[0], 0
    tag = 4 + _side_info(frame) if len(frame) > 4 else 0
    if frame[tag : tag + 4] not in (b"Xing", b"Info") or len(frame) < tag + 120:
        return None, 0
    flags, frames = struct.unpack(">II", frame[tag + 4 : tag + 12])
    lame = tag + 8 + sum(bytes_ for bit, bytes_ in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    gaps = frame[lame + 21 : lame + 24]
    named = frame[lame : lame + 4] in (b"LAME", b"Lavf", b"Lavc", b"L3.9") and len(gaps) == 3
    delay = (gaps[0] << 4 | gaps[1] >> 4) + ((gaps[1] & 15) << 8 | gaps[2]) if named else 0
    return (frames if flags & 1 else 0), delay


def _xing_frame(head: bytes, layout: _Layout, frames: int) -> bytes:
    """A frame with a Xing tag that states a number of frames; none for layers I and II, which have no such tag."""
    if len(head) < 4 or (head[1] >> 1) & 3 != 1:
        return b""
    side = _side_info(head)
    room = side + 16
    index = next(
        index for index in range(1, 15) if layout.sizes[index << 4 | head[2] & 0x0C] >= 4 + room
    )
    third = index << 4 | head[2] & 0x0C
    frame = bytes([255, head[1] | 1, third, head[3]]) + bytes(side)
    frame += b"Xing" + struct.pack(">II", 1, frames)
    return frame.ljust(layout.sizes[third], b"\0")


# --- Ogg ---

OGG_HEADER = struct.Struct("<4sBBQIIIB")
NO_GRANULE = 2**64 - 1
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
        samples = self.last - (self.start or 0) - (0 if self.start else self.delay)
        tolerance_s = self.longest / self.rate
        return Stream(self.first, end, max(0, samples) / self.rate, tolerance_s, cut=cut)


def _ogg_links(file: BinaryIO, size: int) -> Iterator[Stream]:
    """Streams of an Ogg file, one for each link, by the first audio stream in each."""
    link: _Link | None = None
    began, beginning, at = 0, False, 0
    while (page := _next_page(file, at, size)) is not None:
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
            link = _ogg_audio(_read(file, body, 64), began, serial)
        elif link and serial == link.serial and 0 < granule < NO_GRANULE and at <= size:
            if link.start is None:
                link.start = _late_start(file, body, lacing, granule, link)
            link.last = max(link.last, granule)
    if link:
        yield link.stream(size, at > size)


def _next_page(
    file: BinaryIO, at: int, size: int
) -> tuple[int, tuple[bytes, int, int, int, int, int, int, int], bytes] | None:
    """Offset, header and lacing values of the next page; None at the end of the file."""
    while at < size:
        data = _read(file, at, OGG_HEADER.size + 255)
        if data[:4] == b"OggS" and len(data) >= OGG_HEADER.size:
            header = OGG_HEADER.unpack_from(data)
            return at, header, data[OGG_HEADER.size : OGG_HEADER.size + header[-1]]
        data = _read(file, at + 1, 2**16)
        found = data.find(b"OggS")
        at += 1 + (found if found >= 0 else max(1, len(data) - 3))
    return None


def _ogg_audio(packet: bytes, first: int, serial: int) -> _Link | None:
    """Read the first packet of a stream; None if it is no audio."""
    if packet[:7] == b"\x01vorbis":
        (rate,) = struct.unpack_from("<I", packet, 12)
        long_block = 1 << (packet[28] >> 4)
        return _Link(first, serial, rate or 1, 0, long_block, False)
    if packet[:8] == b"OpusHead":
        (delay,) = struct.unpack_from("<H", packet, 10)
        return _Link(first, serial, 48_000, delay, OPUS_LOST, True)
    if packet[:5] == b"\x7fFLAC" and packet[9:13] == b"fLaC":
        info = _StreamInfo.read(packet[17:])
        return _Link(first, serial, info.rate or 1, 0, info.longest, False)
    return None


def _late_start(file: BinaryIO, body: int, lacing: bytes, granule: int, link: _Link) -> int:
    """Granule position at which a stream begins that was recorded from its middle on; 0 for all others."""
    ends = [number for number, length in enumerate(lacing) if length < 255]
    if not link.opus:
        return granule if granule > len(ends) * link.longest else 0
    data, samples, at = _read(file, body, sum(lacing)), 0, 0
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


# --- FLAC ---


class _StreamInfo(NamedTuple):
    """What the STREAMINFO block of a FLAC says."""

    shortest: int  # samples of a block
    longest: int
    rate: int
    total: int

    @classmethod
    def read(cls, block: bytes) -> "_StreamInfo":
        """Read the block, without its header of 4 bytes."""
        shortest, longest = struct.unpack_from(">HH", block)
        packed = int.from_bytes(block[10:18], "big")
        return cls(shortest, longest, packed >> 44, packed & (2**36 - 1))


def _flac(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    block = _read(file, start + 8, 34)
    if len(block) < 34:
        return ()
    info = _StreamInfo.read(block)
    counted = _flac_samples(_read(file, max(start, size - TAIL), TAIL), info)
    rate, samples = info.rate or 1, counted or info.total
    head = b""
    if counted and counted > info.total:
        packed = int.from_bytes(block[10:18], "big") >> 36 << 36 | counted & (2**36 - 1)
        head = b"fLaC" + _read(file, start + 4, 4) + block[:10] + packed.to_bytes(8, "big")
        head += block[18:]
    length_s = samples / rate if samples else None
    stated_s = info.total / rate if info.total else None
    note = f"its header states {info.total} samples, it has {samples}" if head and stated_s else ""
    tolerance_s = info.longest / rate
    return (Stream(start + len(head), size, length_s, tolerance_s, stated_s, head=head, note=note),)


def _flac_samples(tail: bytes, info: _StreamInfo) -> int | None:
    """Samples up to the end of the last frame, by the last two headers of which one continues the other; None without such."""
    before, found = set[int](), None
    for match in re.finditer(rb"\xff[\xf8\xf9]", tail):
        header = _flac_header(tail[match.start() : match.start() + 16], info)
        if header is None:
            continue
        first, behind = header
        if first in before or (first == 0 and found is None):
            found = behind
        before.add(behind)
    return found


def _flac_header(data: bytes, info: _StreamInfo) -> tuple[int, int] | None:
    """First sample of a frame, and the one behind its last; None if this is no frame header (RFC 9639, section 9.1)."""
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


# --- wav, RF64, AIFF ---

PCM_TAGS = {1, 3, 6, 7, 0xFFFE}  # integers, floats, A-law, mu-law, extensible
PCM_AIFF = {b"NONE", b"sowt", b"twos", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32"}


def _chunks(file: BinaryIO, order: str, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the content and stated bytes of each chunk of a RIFF or FORM file."""
    at = 12
    while len(head := _read(file, at, 8)) == 8 and at < size:
        name, length = struct.unpack(f"{order}4sI", head)
        yield name, at + 8, length
        at += 8 + length + length % 2


def _wav(file: BinaryIO, size: int) -> tuple[Stream, ...]:
    block, rate, pcm, long_size = 0, 0, False, None
    for name, at, length in _chunks(file, "<", size):
        if name == b"ds64":
            (long_size,) = struct.unpack("<Q", _read(file, at + 8, 8).ljust(8, b"\0"))
        if name == b"fmt " and length >= 16:
            tag, _, rate, _, block = struct.unpack("<HHIIH", _read(file, at, 14).ljust(14, b"\0"))
            pcm = tag in PCM_TAGS
        if name == b"data" and rate and block:
            stated = long_size if long_size is not None else length
            held = _held(file, "<", at, stated, size, foreign=int(FOREIGN_S * rate * block))
            head = b""
            if held > stated and long_size is None and held < 2**32 - at:
                head = _read(file, 0, at)
                head = head[:4] + struct.pack("<I", at - 8 + held) + head[8:-4]
                head += struct.pack("<I", held)
            length_s = held // block / rate if pcm else None
            return (Stream(at, at + held, length_s, head=head, note=_chunk_note(stated, held)),)
    return ()


def _aiff(file: BinaryIO, size: int) -> tuple[Stream, ...]:
    block, rate = 0, 0.0
    for name, at, length in _chunks(file, ">", size):
        if name == b"COMM" and length >= 18:
            common = _read(file, at, 22).ljust(22, b"\0")
            channels, _, bits = struct.unpack(">hIh", common[:8])
            rate = _extended(common[8:18])
            block = channels * ((bits + 7) // 8) if length < 22 or common[18:] in PCM_AIFF else 0
        if name == b"SSND" and rate > 0 and block > 0:
            at, stated = at + 8, max(0, length - 8)
            held = _held(file, ">", at, stated, size, foreign=int(FOREIGN_S * rate * block))
            head = b""
            if stated < held < 2**31:
                head = _read(file, 0, at)
                head = head[:4] + struct.pack(">I", at - 8 + held) + head[8:-12]
                head += struct.pack(">I", held + 8) + _read(file, at - 8, 8)
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
    head = _read(file, at, 8)
    if len(head) < 8 or head.startswith((b"ID3", b"TAG", b"APETAGEX")):
        return True
    name, length = struct.unpack(f"{order}4sI", head)
    return bool(re.fullmatch(rb"[ -~]{4}", name)) and at + 8 + length <= size + 1


def _extended(data: bytes) -> float:
    """Read a number of 80 bits, as AIFF states its rate."""
    exponent, mantissa = struct.unpack(">HQ", data)
    return mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63) if exponent & 0x7FFF else 0.0

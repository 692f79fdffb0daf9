"""Frames of MPEG audio, layers I to III.

Sources: ISO/IEC 11172-3 and 13818-3; the LAME tag (gabriel.mp3-tech.org/mp3infotag.html).
"""

import struct
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from patchifier.containers.stream import Stream, before_tags, read

CHUNK = 2**20  # bytes that are read at once
SEARCH = 2**18  # bytes in which the first frame must lie
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
INCOMPLETE = "its last frame is incomplete: the file may be cut off"
FRAMES_LOST = 3  # at the start bits of earlier frames may be missing, at the end a part of a frame


class _Layout(NamedTuple):
    """What all frames of an MPEG audio stream share."""

    second: int  # byte of the header: version, layer, protection
    rate: int
    samples: int  # of a frame
    sizes: tuple[int, ...]  # bytes of a frame by the third byte of its header; 0 if that is none


def _layout(head: bytes, free_size: int = 0) -> _Layout | None:
    """Layout that a frame header stands for; None if it is no header.

    `free_size`: bytes of a frame of free format without padding.
    """
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


def streams(file: BinaryIO, start: int, size: int) -> tuple[Stream, ...]:
    """Stream of the MPEG frames from `start` on; none if there are none."""
    found = _sync(read(file, start, SEARCH), 0, final=start + SEARCH >= size)
    if found is None:
        return ()
    first, layout = start + found[0], found[1]
    length = layout.sizes[read(file, first, 3)[2]]
    stated, trimmed = _stated_frames(read(file, first, length), layout)
    seconds, frames, end, behind = _count(file, first, size, layout)
    frame_s = layout.samples / layout.rate
    if stated is not None:  # the frame of the tag holds no audio
        seconds, frames, first = seconds - frame_s, frames - 1, first + length
    trimmed_s = trimmed / layout.rate if stated == frames else 0.0
    partial = stated != frames and behind > before_tags(file, start, size)
    stream = Stream(
        first,
        end,
        max(0.0, seconds - trimmed_s),
        FRAMES_LOST * frame_s,
        stated and stated * frame_s - trimmed_s,
        end_note=INCOMPLETE if partial else "",
    )
    if stated and stated >= frames:
        return (stream,)
    note = f"its tag states {stated} frames, it has {frames}" if stated else ""
    head = _xing_frame(read(file, first, 4), layout, frames)
    return (replace(stream, head=head, note=note),)


def _count(file: BinaryIO, start: int, size: int, layout: _Layout) -> tuple[float, int, int, int]:
    """Seconds and number of the whole frames from `start` on, and where the last one ends.

    Last, where the last frame ends by its header: behind the end of the file if it is incomplete.
    """
    seconds, frames, end, at = 0.0, 0, start, start
    while at < size - 3:
        data = read(file, at, CHUNK)
        behind, count = _walk(data, 0, layout)
        if at + behind > size:  # the last frame is incomplete
            seconds += (count - 1) * layout.samples / layout.rate
            return seconds, frames + count - 1, size, at + behind
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
    return seconds, frames, end, end


def _side_info(head: bytes) -> int:
    """Bytes of a layer III frame's side information."""
    first_version, mono = head[1] & 8, head[3] >> 6 == 3
    return (17 if mono else 32) if first_version else (9 if mono else 17)


def _stated_frames(frame: bytes, layout: _Layout) -> tuple[int | None, int]:
    """Frames that a Xing, Info or VBRI tag states, and samples of the encoder's delay and padding.

    None if the frame has no tag; 0 if its tag states no number.
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
    """Frame with a Xing tag that states a number of frames; none for layers I and II."""
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

"""A part of a file that a decoder can read as a file of its own, and the bytes of it."""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


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
        Decoders may give so much less of a whole stream: their delay, an incomplete frame.
    stated_s : float or None
        Length that the header states, if it states one that says whether the file is cut off.
    cut : bool
        Whether the file ends inside a page.
    head : bytes
        A correct header, where that of the file states no length or too little. With it before
        the bytes from `first` on, a decoder that believes headers reads all of them.
    note : str
        Note for the user about a wrong header; empty for what is common.
    end_note : str
        Note for the user about the end of the audio: what says that the file may be cut off.
    """

    first: int
    end: int
    length_s: float | None = None
    tolerance_s: float = 0.0
    stated_s: float | None = None
    cut: bool = False
    head: bytes = b""
    note: str = ""
    end_note: str = ""


class View(io.RawIOBase):
    """A part of an audio file as a file object: its corrected header, then its bytes.

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


def read(file: BinaryIO, offset: int, count: int) -> bytes:
    """Read bytes from an offset on."""
    file.seek(offset)
    return file.read(count)


def after_id3(file: BinaryIO) -> int:
    """Offset behind the ID3v2 tags at the beginning of a file."""
    offset = 0
    while (head := read(file, offset, 10))[:3] == b"ID3" and len(head) == 10:
        offset += _id3_size(head)
    return offset


def _id3_size(head: bytes) -> int:
    """Bytes of an ID3v2 tag with its header, and its footer if it has one."""
    size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    return size + (20 if head[5] & 16 else 10)


def before_tags(file: BinaryIO, start: int, end: int) -> int:
    """Byte where the tags at the end begin: ID3v1, Lyrics3 and APE, in any order."""
    while (length := _tag_at_end(file, start, end)) and end - length >= start:
        end -= length
    return end


def _tag_at_end(file: BinaryIO, start: int, end: int) -> int:
    """Bytes of the tag that ends at `end`; 0 if there is none."""
    tail = read(file, max(start, end - 128), min(128, end - start))
    if len(tail) == 128 and tail[:3] == b"TAG":
        return 128
    foot = tail[-32:]
    if len(foot) == 32 and foot[:8] == b"APETAGEX":
        length, flags = struct.unpack("<I4xI", foot[12:24])
        return length + (32 if flags >> 31 else 0)  # its size counts the footer, not the header
    if tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    return 0

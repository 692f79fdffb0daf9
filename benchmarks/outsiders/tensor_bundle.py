"""Reads the tensors of a TensorFlow checkpoint (a tensor bundle of one shard) with numpy alone.

NAME.index is a table in LevelDB's format whose values are protocol buffers: type, shape, offset and size of each tensor in NAME.data-00000-of-00001.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FLOAT = 1  # tensorflow's DT_FLOAT
FOOTER = 48  # bytes


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every float32 tensor of the checkpoint in a folder, by name, but for the optimiser's."""
    index, values = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
    found = {}
    for key, entry in _entries(index):
        name = key.decode()
        if not name or "Adam" in name:
            continue
        kind, shape, offset, size = _described(entry)
        if kind == FLOAT:
            found[name] = np.frombuffer(values[offset : offset + size], "<f4").reshape(shape).copy()
    return found


def _entries(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table: the footer points to a block of pointers to blocks."""
    footer = index[-FOOTER:]
    at = 0
    for _ in range(2):  # offset and size of the block of metadata
        _, at = _number(footer, at)
    offset, at = _number(footer, at)
    size, _ = _number(footer, at)
    for _, pointer in _block(index, offset, size):
        first, at = _number(pointer, 0)
        length, _ = _number(pointer, at)
        yield from _block(index, first, length)


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; a key shares its beginning with the one before."""
    if table[offset + size]:
        raise ValueError("the table is compressed, expected a plain one")
    data = table[offset : offset + size]
    restarts = struct.unpack_from("<I", data, size - 4)[0]
    at, key = 0, b""
    while at < size - 4 - 4 * restarts:
        shared, at = _number(data, at)
        fresh, at = _number(data, at)
        length, at = _number(data, at)
        key = key[:shared] + data[at : at + fresh]
        yield key, data[at + fresh : at + fresh + length]
        at += fresh + length


def _described(entry: bytes) -> tuple[int, list[int], int, int]:
    """Type, shape, offset and size of a tensor: fields 1, 2, 4 and 5 of BundleEntryProto."""
    kind, shape, offset, size = 0, [], 0, 0
    for field, value in _fields(entry):
        if field == 1:
            kind = int(value)
        elif field == 2:
            shape = [
                int(dict(_fields(dimension)).get(1, 0))
                for number, dimension in _fields(value)
                if number == 2
            ]
        elif field == 4:
            offset = int(value)
        elif field == 5:
            size = int(value)
    return kind, shape, offset, size


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
        elif kind == 2:
            length, at = _number(message, at)
            yield key >> 3, message[at : at + length]
            at += length
        elif kind in (1, 5):  # fixed 8 and 4 bytes
            width = 8 if kind == 1 else 4
            yield key >> 3, int.from_bytes(message[at : at + width], "little")
            at += width
        else:
            raise ValueError(f"a field has the wire type {kind}, expected 0, 1, 2 or 5")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Variable-length number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7

"""Mutated models, caches, tables, indexes, manifests, archives and recipes."""

import copy
import functools
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchifier import cache, checkpoint, datasets
from patchifier.config import Config, RequestError, naming, read_changes, to_dict, update
from patchifier.datasets.download import fetch
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant
from patchifier.library import search, stored, table
from tests import audio_files as made
from tests import test_checkpoint
from tests.datasets.test_download import FILES, tarred, zipped
from tests.library import test_table
from tests.torture import Attack, Result
from tests.torture._mutants import captured, mutate, survive, unclear


class Kind(NamedTuple):
    """A kind of file.

    `write` writes a healthy one into a folder; `read` gives what its public reader makes of it. If
    it is `sealed`, checksums tell any other content.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sealed: bool = False


# --- what is written, and its reader ---


def _write_model(folder: Path) -> None:
    checkpoint.save(folder / "model", test_checkpoint.made(head=True))


def _read_model(folder: Path) -> list[Any]:
    """What a model folder holds; of weights, which have no checksum, the shapes."""
    found = checkpoint.load(folder / "model")
    tensors = found.model.state_dict()
    assert all(np.isfinite(tensor.numpy()).all() for tensor in tensors.values())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return [to_dict(found.config), found.task, dict(found.facts), shapes]


def _write_cache(folder: Path) -> None:
    for number in range(3):
        made.wav(folder / f"{number}.wav", 0.5 + number / 4)
    (folder / "m.csv").write_text("path,label\n0.wav,a\n1.wav,b\n2.wav,a\n")
    cache.prepare(datasets.load(folder / "m.csv"), folder / "cache", workers=1)
    for path in [folder / "m.csv", *folder.glob("*.wav")]:
        path.unlink()


def _read_cache(folder: Path) -> list[Any]:
    found = cache.Cache(folder / "cache")
    if problems := found.verify():
        raise RequestError(f"{folder}: {problems[0]}")
    log_mels = [found.log_mel(index).tobytes() for index in range(len(found.clips))]
    clips = [vars(clip) | {"path": Path(clip.path).name} for clip in found.clips]
    return [found.name, found.task, clips, to_dict(found.spectrogram), log_mels]


def _read_table(path: Path) -> list[Any]:
    rows = stored.read(path)
    facts = {name: rows.metadata.get(name) for name in test_table.FACTS}
    return [facts, rows.rows.to_pydict(), table.index(path)]


def _write_npy(folder: Path) -> None:
    table.export_npy(test_table.write(folder / "t.parquet"), folder / "t.npy")
    (folder / "t.parquet").unlink()


def _write_index(folder: Path) -> None:
    search.Index.build(test_table.write(folder / "t.parquet"), folder / "index")
    (folder / "t.parquet").unlink()


def _read_index(folder: Path) -> Any:
    index = search.load(folder / "index")
    return [row.path for row in index.similar(np.ones(test_table.SIZE, np.float32), count=5)]


def _write_manifest(folder: Path) -> None:
    (folder / "m.csv").write_text(
        "path,id,start_s,end_s,split,fold,group,label,year\n"
        "a.wav,1,0,2.5,train,0,x,rock|pop,1999\n"
        "a.wav,2,2.5,5,valid,1,x,jazz,2000\n"
        "b.wav,3,,,test,2,y,rock,2001\n"
    )


def _write_jsonl(folder: Path) -> None:
    rows = [
        {"path": "a.wav", "label": {"beat": [0.2, 0.4], "downbeat": [0.2], "meter": "4/4"}},
        {"path": "b.wav", "label": {"beat": [0.1], "downbeat": [0.1]}, "split": "test"},
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_labels(folder: Path) -> None:
    jams = {"namespace": "beat", "data": [{"time": 0.5, "duration": 0, "value": 1}]}
    (folder / "m.csv").write_text("path,label\na.wav,a.beats\nb.wav,b.jams\n")
    (folder / "a.beats").write_text("0.5\t1\n1.0\t2\n")
    (folder / "b.jams").write_text(json.dumps({"annotations": [jams], "file_metadata": {}}))


def _write_lab(folder: Path) -> None:
    (folder / "m.csv").write_text("path,label,metric\na.wav,a.lab,chords\n")
    (folder / "a.lab").write_text("0.0 1.5 N\n1.5 2.5 C:maj\n2.5 4.0 A:min/3\n")


def _read_archive(folder: Path, *, name: str) -> Any:
    """Unpack an archive for which no checksum is published."""
    sheet = Sheet(
        "toy", "Toy", "http://home", "free", "nobody", lambda root, name: None, {"": Variant("all")},
        (Remote(name, ()),), (Archive(name, into="in", unpacked_b=2_000_000),),
    )  # fmt: skip
    found = fetch(sheet, folder)
    if found.missing:
        raise RequestError(f"{folder}: {found.missing[name]}")
    return None


LINKS = [("l", tarfile.SYMTYPE, "/"), ("h", tarfile.LNKTYPE, "../x"), ("p", tarfile.FIFOTYPE, "")]
SMALL = FILES | {"top/b/c.bin": FILES["top/b/c.bin"][:3000]}
ARCHIVES = {
    "x.zip": zipped(SMALL),
    "x.tar": tarred(SMALL, mode="w"),
    "x.tgz": tarred(SMALL),
    "up.zip": zipped(SMALL | {"../up": b"x", "/tmp/up": b"x"}),
    "links.tar": tarred(SMALL, *LINKS, mode="w"),
}


def _archive(name: str) -> Kind:
    return Kind(
        lambda folder: (folder / name).write_bytes(ARCHIVES[name]),
        functools.partial(_read_archive, name=name),
    )


def _write_recipe(folder: Path) -> None:
    changes = {"why": "A test.", **to_dict(Config())}
    (folder / "recipe.json").write_text(json.dumps(changes))


def _read_recipe(folder: Path) -> Config:
    with naming(folder):  # a command names the field; it may be a flag's
        return update(Config(), read_changes(folder / "recipe.json"))


KINDS = {
    "model": Kind(_write_model, _read_model, sealed=True),
    "cache": Kind(_write_cache, _read_cache, sealed=True),
    "table": Kind(
        lambda folder: test_table.write(folder / "t.parquet"),
        lambda folder: _read_table(folder / "t.parquet"),
        sealed=True,
    ),
    "numpy table": Kind(_write_npy, lambda folder: _read_table(folder / "t.npy"), sealed=True),
    "index": Kind(_write_index, _read_index),
    "manifest": Kind(_write_manifest, lambda folder: datasets.load(folder / "m.csv")),
    "JSONL manifest": Kind(_write_jsonl, lambda folder: datasets.load(folder / "m.jsonl")),
    "beats": Kind(_write_labels, lambda folder: datasets.load(folder / "m.csv")),
    "chords": Kind(_write_lab, lambda folder: datasets.load(folder / "m.csv")),
    "recipe": Kind(_write_recipe, _read_recipe),
    **{f"archive {name}": _archive(name) for name in ARCHIVES},
}


# --- mutations of structure ---

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, 0.5, "", "x", "\ud800", "\0", "..",
    "../../../up", "/dev/zero", "C:\\up", "=cmd|' /C calc'!A0", "a\nb", "x" * 10**6, [], {}, [[]],
    [None] * 1000, {"a": {"b": []}}, {"": None},
    "x\0.lab", "\ud800.beats", "[" * 5000, "/dev/zero.jams",
)  # fmt: skip
TEXTS = (b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 10**5, b'{"a":' * 10**5, b"\xff")
WORDS = (*(json.dumps(value).encode() for value in VALUES), *TEXTS)
MARK = "a mark that no file holds"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    below = [value[key] for key in keys if isinstance(value[key], dict | list)]
    return [(value, key) for key in keys] + [place for one in below for place in _places(one)]


def _restructure(text: bytes, draw: np.random.Generator) -> bytes:
    """Remove, rename or replace one value of a JSON text."""
    value = copy.deepcopy(json.loads(text))
    places = _places(value)
    if not places:
        return text
    container, key = places[draw.integers(len(places))]
    how = draw.integers(6)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[MARK] = container.pop(key)
    else:
        container[key] = MARK
    word = WORDS[draw.integers(len(WORDS))]
    return json.dumps(value).encode().replace(json.dumps(MARK).encode(), word)


def _change_line(data: bytes, draw: np.random.Generator) -> bytes:
    """Change one line of JSONL, or one cell of a table."""
    lines = data.split(b"\n")
    number = draw.integers(len(lines))
    if lines[number].startswith((b"{", b"[")):
        lines[number] = _restructure(lines[number], draw)
    else:
        cells = re.split(rb"([,\t ])", lines[number])
        cells[draw.integers(len(cells))] = WORDS[draw.integers(len(WORDS))].strip(b'"')
        lines[number] = b"".join(cells)
    return b"\n".join(lines)


def _change_header(data: bytes, draw: np.random.Generator) -> bytes:
    """Change the JSON header of safetensors; its length fits or does not."""
    length = int.from_bytes(data[:8], "little")
    header = _restructure(data[8 : 8 + length], draw)
    length = len(header) if draw.integers(4) else int(draw.integers(2**40))
    return length.to_bytes(8, "little") + header + data[8 + length :]


def _change_facts(data: bytes, draw: np.random.Generator) -> bytes:
    """Change the facts in the footer of a Parquet table without changing their length."""
    found = re.search(rb'\{"format.*?"crc32": \d+\}', data)
    if not found:
        return mutate(data, draw)
    facts = mutate(found[0], draw)[: len(found[0])].ljust(len(found[0]))
    return data[: found.start()] + facts + data[found.end() :]


STRUCTURED = {
    ".json": _restructure,
    ".jams": _restructure,
    ".jsonl": _change_line,
    ".csv": _change_line,
    ".lab": _change_line,
    ".beats": _change_line,
    ".safetensors": _change_header,
    ".parquet": _change_facts,
}


class Payload:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


def _replace(path: Path, draw: np.random.Generator) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    how = draw.integers(8)
    if how == 0:
        path.symlink_to("/dev/zero")
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.mkdir()
    elif how == 3:
        path.symlink_to(path.name)
    elif how == 4:
        path.write_bytes(pickle.dumps(Payload()))
    elif how == 5:
        np.save(path.with_suffix(".npy"), np.array([Payload()]), allow_pickle=True)
        path.with_suffix(".npy").replace(path)
    elif how == 6:
        path.write_bytes(b"")  # and else it is missing


def _change(path: Path, others: list[Path], draw: np.random.Generator) -> None:
    """Change one file in one way."""
    how, data = draw.integers(10), path.read_bytes()
    structured = STRUCTURED.get(path.suffix)
    if how == 0:
        _replace(path, draw)
    elif how == 1:
        path.write_bytes(others[draw.integers(len(others))].read_bytes())
    elif how < 6 and structured:
        path.write_bytes(structured(data, draw))
    else:
        path.write_bytes(mutate(data, draw))


# --- the check of one mutant ---


@functools.cache
def _healthy(healthy: Path, name: str) -> str:
    return repr(KINDS[name].read(healthy / name))


def _check(healthy: Path, number: int, folder: Path, draw: np.random.Generator) -> str:
    name = list(KINDS)[number % len(KINDS)]
    expected = "" if name.startswith("archive") else _healthy(healthy, name)
    place = folder / "deep" / "place"
    shutil.copytree(healthy / name, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    if number >= len(KINDS):
        _change(files[draw.integers(len(files))], files, draw)
    words = _read(KINDS[name], place, expected)
    words = words or ("runs a pickle" if Path(MARK).exists() else "")
    outside = sorted(path.name for path in (*folder.iterdir(), *place.parent.iterdir()))
    words = words or ("" if outside == ["deep", "place"] else f"writes {outside}")
    return f"{name}: {words}" if words else ""


def _read(kind: Kind, place: Path, expected: str) -> str:
    """What is wrong with what a reader makes of a mutant."""
    try:
        found = repr(kind.read(place))
    except RequestError as error:
        return unclear(error, str(place), "data set 'm'", "/dev/")
    same = found == expected or not kind.sealed
    return "" if same else "other content than was written, without a word"


def run(folder: Path, count: int, draw: np.random.Generator) -> Result:
    healthy = folder / "healthy"
    with captured(folder / "writers"):
        for name, kind in KINDS.items():
            (healthy / name).mkdir(parents=True)
            kind.write(healthy / name)
    result = survive(_check, healthy, folder, count, draw)
    result.inputs = len(KINDS)
    return result


ATTACKS = [Attack(10, "mutated models, tables, manifests, archives", run, count=4_000, short=300)]

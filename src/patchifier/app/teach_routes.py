"""Endpoints: labels that are taught by a few songs, and models that predict."""

import csv
import io
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.responses import Response

from patchifier import head_files, heads
from patchifier.app.parameters import NoParams, RefusedError
from patchifier.app.state import Served
from patchifier.app.teach import GROUPING, shared, teach
from patchifier.app.teach_csv import require_whole_files
from patchifier.config import RequestError
from patchifier.io import to_cell

KEPT = 50  # heads
NOT_SURE = "not sure"  # in place of a label, by a head that doubts
NAME = re.compile(r"[\w][\w .+-]{0,59}")


@dataclass(frozen=True)
class TeachParams:
    """Name of a head, and ids of songs for each label."""

    labels: dict[str, list[str]]
    name: str = "labels"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise RequestError(
                f"name is {self.name[:60]!r}, expected up to 60 letters, digits, spaces and . + -"
            )


@dataclass(frozen=True)
class HeadParams:
    """A head by name."""

    head: str


@dataclass(frozen=True)
class SaveParams:
    """A head by name, and what is saved: predictions for the library, or the head."""

    head: str
    what: Literal["csv", "head"] = "csv"


@dataclass(frozen=True)
class PredictParams:
    """A song, and a head by name."""

    id: str
    head: str


def read_heads(folder: Path | None, identity: str) -> dict[str, heads.Head]:
    """Heads by name from the folders and zip files in a folder.

    One that cannot be used is named and left out.
    """
    found = dict[str, heads.Head]()
    for one in head_files.find_in(folder) if folder else []:
        try:
            name = one.name if one.is_dir() else one.stem
            found.setdefault(name, _of_model(heads.read(one), identity, one))
        except RequestError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
    return found


def _of_model(head: heads.Head, identity: str, folder: Path) -> heads.Head:
    if head.identity != identity:
        raise RequestError(
            f"{folder} is a head of another model ({head.model}) than the table: take it out of "
            "the folder, or teach it again."
        )
    return head


def listed(served: Served, params: NoParams) -> list[dict[str, Any]]:
    """Heads that were taught here or read from disk, with what is known of their accuracy."""
    return [
        {
            "name": name,
            "labels": list(head.names),
            "accuracy": head.facts.get("accuracy"),
            "facts": dict(head.facts),
        }
        for name, head in served.heads.items()
    ]


def taught(served: Served, params: TeachParams) -> dict[str, Any]:
    """Train a head on the vectors of labelled songs, and say how well it predicts."""
    collection = served.collection
    if not len(collection):
        raise RefusedError(
            409, "this library is empty, so nothing can be taught: embed some music."
        )
    places = {label: [collection.find(one) for one in ids] for label, ids in params.labels.items()}
    with served.turn():
        found = teach(
            collection.directions, places, identity=collection.table.identity, model=served.model
        )
    served.heads.pop(params.name, None)
    served.heads[params.name] = found.head
    served.given[params.name] = {one: label for label, ids in params.labels.items() for one in ids}
    while len(served.heads) > KEPT:
        oldest = next(iter(served.heads))
        served.heads.pop(oldest)
        served.given.pop(oldest, None)
    tags = {tag: collection.column(tag) for tag in GROUPING}
    alike = [
        {"tag": tag, "n": count, "most": value}
        for tag, (count, value) in shared(places, tags).items()
    ]
    names = found.head.names
    doubtful = [
        {
            "track": collection.track(place),
            "label": names[int(found.probabilities[place].argmax())],
            "probability": round(float(found.probabilities[place].max()), 4),
        }
        for place in found.doubtful
    ]
    return {"head": params.name, **found.to_dict(), "shared": alike, "doubtful": doubtful}


def _head(served: Served, name: str) -> heads.Head:
    if name not in served.heads:
        raise RefusedError(404, f"there is no head {name[:60]!r}: teach it first.")
    return served.heads[name]


def labels_of(served: Served, name: str) -> list[tuple[str, float]]:
    """Most probable label of each track, with its probability, or "not sure".

    The library may have grown since the head was taught.
    """
    head, vectors = _head(served, name), served.collection.directions
    probabilities, sure = head.probabilities(vectors), head.sure(vectors)
    best = probabilities.argmax(1)
    return [
        (head.names[label] if answered else NOT_SURE, round(float(row[label]), 4))
        for label, row, answered in zip(best.tolist(), probabilities, sure)
    ]


def applied(served: Served, params: HeadParams) -> dict[str, Any]:
    """Label of every song of the library."""
    labels = labels_of(served, params.head)
    return {
        "labels": {
            one: {"label": label, "probability": probability}
            for one, (label, probability) in zip(served.collection.ids, labels)
        }
    }


def predict(served: Served, params: PredictParams) -> dict[str, Any]:
    """Probabilities of a head's labels for one song or upload."""
    head = _head(served, params.head)
    found = head.probabilities(served.song(params.id).vector[None])[0]
    return {"names": list(head.names), "values": [round(float(value), 4) for value in found]}


def saved(served: Served, params: SaveParams) -> Response:
    """Predictions for the library as CSV, or the head as a zip file of its folder."""
    stem = re.sub(r"[^\w.+-]+", "-", params.head, flags=re.ASCII).strip("-") or "head"
    if params.what == "csv":
        return download(
            _csv(served, params.head), f"{stem}-predicted.csv", "text/csv; charset=utf-8"
        )
    require_whole_files(served.collection)
    head = _head(served, params.head)
    folder = served.folder / "heads" / stem
    with served.one_at_a_time(f"head {stem}"):
        head.save(folder)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{stem}/{file.name}")
    return download(content.getvalue(), f"{stem}.zip", "application/zip")


def _csv(served: Served, name: str) -> bytes:
    """Predictions for the library; `given` is the label that the user gave, empty for none."""
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["path", "label", "probability", "given"])
    rows = zip(served.collection.ids, served.collection.paths, labels_of(served, name))
    given = served.given.get(name, {})
    for one, path, (label, probability) in rows:
        own = given.get(one, "")
        table.writerow([to_cell(path), to_cell(label), probability, to_cell(own)])
    return stream.getvalue().encode("utf-8", "replace")


def download(content: bytes, name: str, media_type: str) -> Response:
    """A file that the browser saves."""
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)

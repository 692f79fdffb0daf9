"""Flags that choose which files take part in a search, and messages where none does."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchifier.library.search import Filter, VectorStore

MOST_MEANT = 3  # values of a tag that a message suggests


@dataclass(frozen=True)
class Conditions:
    """Which files take part; what is empty is no condition.

    Parameters
    ----------
    artist, title, album, genre, albumartist : str
        Only files whose tag is exactly this, ignoring case.
    year_from : int
        Only files of this year and later.
    year_to : int
        Only files of this year and earlier.
    below : str
        Only files below this folder, by its path or its name; or files whose path begins with this.
    """

    artist: str = ""
    title: str = ""
    album: str = ""
    genre: str = ""
    albumartist: str = ""
    year_from: int = 0
    year_to: int = 0
    below: str = ""

    def where(self, store: "VectorStore") -> "Filter":
        """As a filter of a search in a store."""
        from patchifier.library.search import Filter

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value}
        if below := given.pop("below", None):
            given["path_prefix"] = prefix_of(store, below)
        return Filter(**given)

    def hints(self, store: "VectorStore") -> str:
        """Sentences about what was meant, where no file of a store fulfils the conditions."""
        from patchifier.library.search.rows import TEXTS

        tags = [tag_hint(store, name, getattr(self, name)) for name in TEXTS if getattr(self, name)]
        folders = [folder_hint(store, self.below)] if self.below else []
        return "".join(f" {hint}" for hint in [*tags, *folders] if hint)

    def __str__(self) -> str:
        return ", ".join(f"--{name} {value}" for name, value in vars(self).items() if value)


def prefix_of(store: "VectorStore", below: str) -> str:
    """How the paths begin that --below means: a folder here, a beginning, or a folder's name."""
    from patchifier.library.search.rows import folder_named

    paths = store.paths()
    whole = f"{Path(below).resolve()}/"
    starts = [whole, below] if Path(below).is_dir() else [below]
    for start in starts:
        if any(path.startswith(start) for path in paths):
            return start
    return folder_named(paths, below) or starts[0]


def tag_hint(store: "VectorStore", name: str, value: str) -> str:
    """Sentence about values of a tag that are near to one that no file has; else empty."""
    from patchifier.library.search import Filter

    if store.filter(Filter(**{name: value})):  # type: ignore[arg-type]
        return ""
    known = {str(row.tags[name]) for row in store.filter(Filter()) if name in row.tags}
    if near := near_values(value, known):
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"No file has the {name} {value!r}."


def near_values(value: str, known: set[str]) -> list[str]:
    """Values that contain another one, or are written nearly as it is; three at most.

    Examples
    --------
    >>> near_values("stuart", {"Stuart Marshall", "Bach"}), near_values("Bahc", {"Bach"})
    (['Stuart Marshall'], ['Bach'])
    """
    folded = {one.casefold(): one for one in sorted(known)}
    wanted = value.casefold()
    found = [one for one in folded if wanted in one]
    found = found or difflib.get_close_matches(wanted, folded, n=MOST_MEANT)
    return [folded[one] for one in found[:MOST_MEANT]]


def folder_hint(store: "VectorStore", below: str) -> str:
    """Sentence about how paths of a store begin, where none begins as was said; else empty."""
    paths = store.paths()
    start = prefix_of(store, below)
    if not paths or any(path.startswith(start) for path in paths):
        return ""
    return (
        f"No path of the table has the folder {below}: expected the name of a folder, or the "
        f"beginning of a path such as {paths[0]}."
    )

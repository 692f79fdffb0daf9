"""What a data sheet says about a published data set: where its files are, what is known to be broken, how many clips each split has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchifier.datasets import Dataset


@dataclass(frozen=True)
class Remote:
    """One file that is published.

    Parameters
    ----------
    name : str
        Of the file below the root.
    urls : tuple of str
        Where it is, the best place first; none if it can only be had by hand.
    sha256 : str
        In hexadecimal; empty if the publisher states none and nobody has reported one.
    size_b : int or None
        In bytes, where known.
    dead : str
        Why the address no longer answers, in words; empty if it does.
    """

    name: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    size_b: int | None = None
    dead: str = ""


@dataclass(frozen=True)
class Archive:
    """An archive to unpack: the parts, byte slices, are joined in order; its content goes `into` a folder below the root."""

    name: str
    parts: tuple[str, ...] = ()
    into: str = "."
    unpacked_b: int = 8 * 2**30  # more than this is not unpacked: an archive that grows beyond is not what it says


@dataclass(frozen=True)
class Variant:
    """One way to read a data set: a split, a target.

    Parameters
    ----------
    what : str
        In words, for messages and ``--help``.
    counts : dict of str
        Published clips of each split ("train", "valid", "test"; "" where there is none), as far as known.
    """

    what: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A published data set as a row of data.

    Parameters
    ----------
    name : str
        As given on the command line.
    title, home, licence, citation : str
        For people.
    read : callable
        Takes the root and the name of a variant, gives every clip that should be there, whether its file is or not.
        Clips known to be unusable in every copy are left out.
    variants : dict
        The first is the default.
    remotes, archives : tuple
        For ``patchifier fetch``.
    known_bad : dict of str
        Relative path -> why: files that are broken in every copy, or in some; nobody is blamed for these.
    steps : str
        What a person has to do where no address answers.
    """

    name: str
    title: str
    home: str
    licence: str
    citation: str
    read: "Callable[[Path, str], Dataset]"
    variants: Mapping[str, Variant]
    remotes: tuple[Remote, ...] = ()
    archives: tuple[Archive, ...] = ()
    known_bad: Mapping[str, str] = field(default_factory=dict)
    steps: str = ""

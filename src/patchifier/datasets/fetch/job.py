"""One call of fetch: what is asked for, what has come of it so far, and how one file is had."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchifier.config import RequestError
from patchifier.datasets.fetch.download import Patience, Unavailable, download
from patchifier.datasets.fetch.place import Progress, discard, fault, part_of, set_aside
from patchifier.datasets.fetch.unpack import Refused, relative

if TYPE_CHECKING:  # the package that holds them imports torch
    from patchifier.datasets.sheet import Remote, Sheet


@dataclass(frozen=True)
class Fetched:
    """What :func:`~patchifier.datasets.fetch.fetch` did, by names of the sheet.

    Attributes
    ----------
    downloaded, present : tuple of str
        Files that came over the network, and files that were there already and fit.
    joined, unpacked : tuple of str
        Archives that were put together from parts, and that were unpacked, this time.
    missing : dict of str
        What could not be had -> why, and what a person can do. Empty if all is well.
    notes : dict of str
        What was not verified, was set aside or was not needed -> why.
    """

    downloaded: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def facts(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "complete": self.complete}

    def lines(self) -> list[str]:
        """The same for a person to read, what is missing last."""
        done = {
            "downloaded": self.downloaded,
            "there already": self.present,
            "joined": self.joined,
            "unpacked": self.unpacked,
        }
        lines = [f"{what}: {', '.join(names)}" for what, names in done.items() if names]
        lines += [f"note: {name}: {text}" for name, text in self.notes.items()]
        return lines + [f"MISSING: {name}: {text}" for name, text in self.missing.items()]


@dataclass
class Job:
    """The same while it is being done, with where and how."""

    sheet: "Sheet"
    root: Path
    progress: Progress
    patience: Patience
    downloaded: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    unpacked: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where a name of the sheet lies: below the root, or the sheet is wrong."""
        try:
            return self.root / relative(name)
        except Refused as error:
            raise RequestError(
                f"data sheet {self.sheet.name!r} {error}: expected a path below the root."
            ) from error

    def note(self, name: str, text: str) -> None:
        """Add to what is said about a file."""
        if text not in self.notes.get(name, ""):
            self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text

    def remote(self, name: str) -> "Remote":
        """What the sheet says of a file; nothing but its name, if it says nothing."""
        known = next((remote for remote in self.sheet.remotes if remote.name == name), None)
        if known is not None:
            return known
        from patchifier.datasets.sheet import Remote

        return Remote(name)

    def result(self) -> Fetched:
        """What came of it."""
        downloaded, present, joined, unpacked = (
            tuple(dict.fromkeys(names))
            for names in (self.downloaded, self.present, self.joined, self.unpacked)
        )
        return Fetched(downloaded, present, joined, unpacked, self.missing, self.notes)


def obtain(job: Job, remote: "Remote") -> bool:
    """Have a file in place and checked, from disk or from the first address that gives it. A dead address is tried once: it may be back."""
    path = job.path(remote.name)
    if _is_there(job, remote, path):
        return True
    reasons = [f"no longer published: {remote.dead}"] if remote.dead else []
    for url in remote.urls:
        try:
            download(
                remote,
                url,
                path,
                patience=replace(job.patience, attempts=1) if remote.dead else job.patience,
                progress=job.progress,
            )
        except Unavailable as error:
            reasons.append(f"{url} {error}")
        else:
            job.downloaded.append(remote.name)
            _say_unverified(job, remote)
            return True
    if not remote.urls:
        reasons.append("no address is known to download it from")
    job.missing[remote.name] = f"{'; '.join(reasons)}. {_by_hand(job, remote)}"
    return False


def _is_there(job: Job, remote: "Remote", path: Path) -> bool:
    """Whether the file lies there already and fits; one that does not is set aside."""
    if not path.exists():
        return False
    wrong = fault(path, remote, job.progress)
    if wrong:
        job.note(remote.name, f"the file that was there {wrong}: kept as {set_aside(path).name}")
        return False
    job.present.append(remote.name)
    discard(part_of(path))
    _say_unverified(job, remote)
    return True


def _say_unverified(job: Job, remote: "Remote") -> None:
    if not remote.sha256:
        job.note(
            remote.name,
            "not verified: no checksum published"
            + (" (its size fits)" if remote.size_b is not None else ""),
        )


def _by_hand(job: Job, remote: "Remote") -> str:
    """What a person can do about a file that no address gives."""
    mirrors = (
        f"Addresses that had it: {', '.join(remote.urls)}." if remote.dead and remote.urls else ""
    )
    put = f"Put the file at {job.path(remote.name)} and run this again: it is checked and used."
    return " ".join(text for text in (mirrors, job.sheet.steps, put) if text)

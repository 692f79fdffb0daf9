"""Get the files of a published data set, when asked: download, check, join, unpack.

Below the root, beside what a data sheet names:

========================  ==========================================================================================
``NAME.part``             what there is of a download or a joined file that is not finished; a download is resumed
``NAME.part.json``        which address those bytes came from, and the server's mark of their version
``NAME.damaged``          a file that was there and was not what it should be: kept, never overwritten
``.NAME.unpacking/``      an archive that is being unpacked; after a kill it is thrown away and begun again
``.NAME.unpacked``        which archive was unpacked, by checksum: it may be deleted, and is not unpacked again
========================  ==========================================================================================

Nothing is trusted: neither lengths that a server states nor names and sizes in an archive. Standard library only.
"""

import errno
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from patchifier.config import RequestError
from patchifier.datasets.fetch.archives import obtain_archive
from patchifier.datasets.fetch.download import Patience
from patchifier.datasets.fetch.job import Fetched, Job, obtain
from patchifier.datasets.fetch.place import Progress
from patchifier.jobs import folder_lock

if TYPE_CHECKING:  # the package that holds them imports torch
    from patchifier.datasets.sheet import Archive, Sheet

__all__ = ["Fetched", "fetch", "silent"]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def silent(done: int, total: int, note: str) -> None:
    """Show no progress."""


def fetch(
    sheet: "Sheet",
    root: str | Path,
    *,
    progress: Progress = silent,
    timeout_s: float = 30.0,
    attempts: int = 5,
    backoff_s: float = 1.0,
    only: Collection[str] | None = None,
) -> Fetched:
    """Download what a data sheet lists, check it, join parts and unpack archives; what is there already is checked and kept.

    Parameters
    ----------
    sheet : Sheet
        The data set.
    root : str or Path
        Folder for its files; made if it is not there.
    progress : callable
        Called with megabytes done, megabytes in all, and what is being done; file by file.
    timeout_s : float
        A connection that gives nothing for so long has stalled.
    attempts : int
        Tries of one address in a row that bring nothing new, before the next mirror is asked.
    backoff_s : float
        Wait before the second try; doubled each time, up to a minute.
    only : collection of str
        Names of files or archives (an archive stands for its parts too); everything by default.

    Returns
    -------
    Fetched
        A file that cannot be had stops nothing else: it stands in `missing`.

    Raises
    ------
    RequestError
        If the root cannot be written to, the disk is full, another fetch works in this root, or `only` names what the sheet does not have.
    """
    job = Job(sheet, Path(root), progress, Patience(timeout_s, attempts, backoff_s))
    files, archives = _chosen(sheet, only)
    try:
        job.root.mkdir(parents=True, exist_ok=True)
        with folder_lock(job.root, "fetch"):
            for name in files:
                obtain(job, job.remote(name))
            for archive in archives:
                obtain_archive(job, archive)
    except OSError as error:
        raise RequestError(_explain(error, job.root)) from error
    return job.result()


def _chosen(sheet: "Sheet", only: Collection[str] | None) -> tuple[list[str], list["Archive"]]:
    """Names of single files, and archives, which bring their own files."""
    of_archives = [name for archive in sheet.archives for name in (archive.name, *archive.parts)]
    known = list(dict.fromkeys([*(remote.name for remote in sheet.remotes), *of_archives]))
    wanted = set(known) if only is None else {only} if isinstance(only, str) else set(only)
    if not known:
        raise RequestError(
            f"data set {sheet.name!r} cannot be fetched: its sheet lists no files. {sheet.steps or f'See {sheet.home}.'}"
        )
    if not wanted <= set(known):
        raise RequestError(
            f"data set {sheet.name!r} has no file {', '.join(sorted(wanted - set(known)))}, expected some of: {', '.join(known)}."
        )
    archives = [archive for archive in sheet.archives if archive.name in wanted]
    brought = {name for archive in archives for name in (archive.name, *archive.parts)}
    return [name for name in known if name in wanted and name not in brought], archives


def _explain(error: OSError, root: Path) -> str:
    where = error.filename or root
    if error.errno in FULL:
        return f"{where}: the disk is full ({error.strerror}). Free some space, or choose another --root; run it again and it goes on where it stopped."
    return f"{where}: cannot be written or read ({error.strerror or error}). Choose a --root that is a folder you may write to."

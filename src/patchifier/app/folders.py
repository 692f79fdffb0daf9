"""Where the server keeps what it makes: the user's cache."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Folder of this user's caches: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "patchifier"


def table_of(folder: str | Path) -> Path:
    """Table of a folder in the user's cache; two folders of one name have two.

    Examples
    --------
    >>> table_of("music") == table_of("./music"), table_of("music").suffix
    (True, '.parquet')
    """
    real = os.path.realpath(folder)
    digest = hashlib.blake2b(os.fsencode(real), digest_size=6).hexdigest()
    return cache_folder() / f"{os.path.basename(real) or 'music'}-{digest}.parquet"

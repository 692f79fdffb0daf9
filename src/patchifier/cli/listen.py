"""Commands that serve a library: app, serve, navidrome."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.cli.command import Outcome, say
from patchifier.config import RequestError


def app(
    table: str,
    *,
    music: str = "",
    model: str = "",
    out: str = "",
    port: int = 8756,
    workers: int = 0,
    heads: str = "",
    no_browser: bool = False,
) -> Outcome:
    """Listen to a library in the browser: search, neighbours, map, a look inside.

    Parameters
    ----------
    table : str
        A table of 'patchifier embed', or a folder of music, which is embedded first.
    music : str
        Folder of the table's relative paths; nothing outside of it is played.
    model : str
        Model that made the table, or that embeds the folder; patchifier-base by default.
    out : str
        NAME.parquet, the table of a folder; in the user's cache by default. Its path is printed.
    port : int
        Port of 127.0.0.1; 0 takes any that is free.
    workers : int
        Number of processes that embed a folder; 0 is one for each core.
    heads : str
        Folder that exists, with saved heads: folders of 'patchifier teach', or zip files of the
        page. The map can be coloured by them.
    no_browser : bool
        Do not open the browser.

    Examples
    --------
    The page of a folder of music, which is embedded first:
        $ patchifier app ~/Music

    The page of a table, on another port, without opening a browser:
        $ patchifier app music.parquet --port 9000 --no_browser
    """
    _use_one_thread()
    from patchifier.app.collection import table_of
    from patchifier.app.security import Access

    embedded = (out or table_of(table)) if Path(table).is_dir() else ""

    def started(address: str) -> None:
        say(f"the page is at {address} - Ctrl-C ends it.")
        if embedded:
            say(f"the table of this folder is {embedded}")
        if not no_browser:
            import webbrowser

            webbrowser.open(address)

    options = {"out": Path(out) if out else None, "workers": workers or None, "model": model}
    return _run(table, started, port=port, music=music, heads=heads, access=Access(), **options)


def serve(
    table: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8756,
    token: str = "",
    music: str = "",
    model: str = "",
    heads: str = "",
) -> Outcome:
    """Serve a table to programs: a JSON API, and OpenSubsonic's sonicSimilarity.

    Parameters
    ----------
    table : str
        A table of 'patchifier embed'.
    host : str
        Address to bind; other machines need a token.
    port : int
        Port to bind; 0 takes any that is free.
    token : str
        Password of every request, at least 8 letters; PATCHIFIER_TOKEN by default.
    music : str
        Folder of the table's relative paths; nothing outside of it is sent.
    model : str
        Model that made the table, for uploads; the bundled models are tried by default.
    heads : str
        Folder that exists, with saved heads, a folder or zip file each, which predict labels.

    Examples
    --------
    The API for programs of this computer:
        $ patchifier serve music.parquet

    For other computers: a token is the password of every request:
        $ patchifier serve music.parquet --host 0.0.0.0 --token long-secret-word
    """
    _use_one_thread()
    from patchifier.app.security import Access

    if Path(table).is_dir():
        raise RequestError(f"{table} is a folder, expected a table: 'patchifier embed' makes it.")

    def started(address: str) -> None:
        say(f"the API is at {address}api/openapi.json")

    access = Access(host, token or os.environ.get("PATCHIFIER_TOKEN", ""))
    options = {"access": access, "model": model, "page": False}
    return _run(table, started, port=port, music=music, heads=heads, **options)


def _run(
    table: str,
    started: Callable[[str], None],
    *,
    port: int,
    music: str,
    heads: str,
    **options: Any,
) -> Outcome:
    """Serve until Ctrl-C."""
    from patchifier.app.server import Settings, run

    if not 0 <= port < 2**16:
        raise RequestError(f"--port is {port}, expected 0 to 65535.")
    options |= {"music": _folder("--music", music), "heads": _folder("--heads", heads)}
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        run(table, Settings(port=port, **options), started=started)
    return Outcome({}, "ended.")


def navidrome(folder: str) -> Outcome:
    """Write the plugin with which Navidrome asks 'patchifier serve'.

    Parameters
    ----------
    folder : str
        Navidrome's folder of plugins.

    Examples
    --------
    Write the plugin, and start the server that it needs:
        $ patchifier navidrome /var/lib/navidrome/plugins
        $ patchifier serve music.parquet

    The same for a folder that a container mounts:
        $ patchifier navidrome data/plugins
    """
    from patchifier.integrations.navidrome import write_plugin

    out = write_plugin(folder)
    text = f"{out}\nEnable it on Navidrome's page of plugins, and give it the server's address."
    return Outcome({"plugin": str(out)}, text)


def _use_one_thread() -> None:
    """Compute with one thread for each request, unless the user says otherwise.

    A search takes milliseconds: on a busy machine threads wait for each other longer than that.
    numpy reads this when it is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _folder(flag: str, name: str) -> Path | None:
    if name and not Path(name).is_dir():
        raise RequestError(f"{flag} is {name}, expected a folder that exists.")
    return Path(name) if name else None

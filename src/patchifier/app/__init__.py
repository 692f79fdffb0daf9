"""A music library in a browser: a server on this machine, its JSON API, and a static page.

``patchifier app`` serves the page and the API on 127.0.0.1. ``patchifier serve`` serves the API,
among it OpenSubsonic's ``sonicSimilarity``, to music players. Extra ``app``.
"""

from typing import TYPE_CHECKING

from patchifier.lazy import attach

if TYPE_CHECKING:
    from patchifier.app.server import Settings, make_app, run

__all__ = ["Settings", "make_app", "run"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Settings": "patchifier.app.server",
        "make_app": "patchifier.app.server",
        "run": "patchifier.app.server",
    },
)

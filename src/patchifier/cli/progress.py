"""A step's progress on standard error: a bar on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable


def progress(title: str) -> Callable[[int, int, str], None]:
    """Show a step's progress on standard error: a bar on a terminal, a plain line every ten seconds in a pipe."""
    return _bar(title) if sys.stderr.isatty() else _lines(title)


def _bar(title: str) -> Callable[[int, int, str], None]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None, note="")

    def show(done: int, total: int, note: str) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total, note=note)
        if done >= total:
            bar.stop()

    return show


def _lines(title: str) -> Callable[[int, int, str], None]:
    first: list[tuple[float, int]] = []  # when it was first called, and how much was done by then
    said = 0.0

    def show(done: int, total: int, note: str) -> None:
        nonlocal said
        now = time.monotonic()
        if not first:
            first.append((now, done))
            said = now
        if now - said >= 10 or done >= total:
            said = now
            left = (now - first[0][0]) / max(1, done - first[0][1]) * (total - done)
            print(
                f"{title}: {done} of {total}, {left:.0f} s left{', ' + note if note else ''}",
                file=sys.stderr,
                flush=True,
            )

    return show

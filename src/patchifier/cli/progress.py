"""A step's progress on standard error: a bar on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable


def progress(title: str) -> Callable[[int, int, str], None]:
    """Show a step on standard error: a bar on a terminal, a line every ten seconds in a pipe."""
    return _bar(title) if sys.stderr.isatty() else _lines(title)


def _bar(title: str) -> Callable[[int, int, str], None]:
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description:>30}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    task = bar.add_task(title, total=None, note="")

    def show(done: int, total: int, note: str) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total, note=note)
        if done >= total:
            bar.stop()

    return show


def _lines(title: str) -> Callable[[int, int, str], None]:
    start: tuple[float, int] | None = None  # time of the first call, and items done by then
    printed = 0.0

    def show(done: int, total: int, note: str) -> None:
        nonlocal start, printed
        now = time.monotonic()
        if start is None:
            start, printed = (now, done), now
        if now - printed >= 10 or done >= total:
            printed = now
            left = (now - start[0]) / max(1, done - start[1]) * (total - done)
            line = f"{title}: {done} of {total}, {left:.0f} s left{', ' + note if note else ''}"
            print(line, file=sys.stderr, flush=True)

    return show

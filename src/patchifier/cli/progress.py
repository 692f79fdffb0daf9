"""A step's progress on standard error: a bar on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable

ENOUGH, ENOUGH_SHARE = 20, 0.02  # items, or share of all, from which time is extrapolated


def progress(title: str) -> Callable[[int, int, str], None]:
    """Show a step on standard error: a bar on a terminal, a line every ten seconds in a pipe."""
    return _bar(title) if sys.stderr.isatty() else _lines(title)


def _bar(title: str) -> Callable[[int, int, str], None]:
    from tqdm import tqdm

    form = "{desc:>30} {bar:40} {n_fmt}/{total_fmt} {remaining} {postfix}"
    bar: tqdm | None = None  # made at the first call, from which the time that is left counts

    def show(done: int, total: int, note: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=title, total=total, initial=done, bar_format=form, file=sys.stderr)
        bar.total = total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            bar = None

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
            parts = [
                f"{title}: {done} of {total}",
                _left(now - start[0], done - start[1], total - done),
                note,
            ]
            print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)

    return show


def _left(seconds: float, done: int, left: int) -> str:
    """Time that is left; none is said after the first items, which wait for imports and models."""
    if left > 0 and done < min(ENOUGH, ENOUGH_SHARE * (done + left)):
        return ""
    return f"{seconds / max(1, done) * left:.0f} s left"

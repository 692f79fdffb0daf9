"""A step's progress on standard error: a bar on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable

from patchifier.io import Hundredths

LINES_S = 10.0  # between two lines in a pipe


def progress(title: str) -> Callable[[int, int, str], None]:
    """Show a step on standard error: a bar on a terminal, a line every ten seconds in a pipe.

    A first call without a note says where the step begins, and is a line at once.
    Where nobody knows how much there is in all (0), the note says how far it is. If nothing is done
    yet either, the note is an announcement, which is printed at once and stays.
    """
    shown = _bar(title) if sys.stderr.isatty() else _lines(title)

    def show(done: int, total: int, note: str) -> None:
        if total or done:
            shown(done, total, note)
        else:
            _say(f"{title}: {note}")

    return show


def _say(line: str) -> None:
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)  # above a bar
    else:
        print(line, file=sys.stderr, flush=True)


def _bar(title: str) -> Callable[[int, int, str], None]:
    from tqdm import tqdm

    bar: tqdm | None = None  # made at the first call, from which the time that is left counts

    def show(done: int, total: int, note: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(
                desc=title,
                total=total,
                initial=done,
                bar_format=_form(False, total),
                postfix=note,
                file=sys.stderr,
            )
        bar.bar_format, bar.total = _form(done > bar.initial, total), total
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total > 0:
            bar.close()
            bar = None

    return show


def _form(moved: bool, total: int) -> str:
    """Form of a bar: with the time that is left once something was done, if items are counted."""
    if not total:
        return "{desc:>30} {postfix}"
    if isinstance(total, Hundredths):
        return "{desc:>30} {bar:40} {percentage:3.0f} % {postfix}"
    left = "{remaining} " if moved else ""
    return f"{{desc:>30}} {{bar:40}} {{n_fmt}}/{{total_fmt}} {left}{{postfix}}"


def _lines(title: str) -> Callable[[int, int, str], None]:
    start: tuple[float, int] | None = None  # time of the first call, and items done by then
    printed = 0.0

    def show(done: int, total: int, note: str) -> None:
        nonlocal start, printed
        now = time.monotonic()
        begins = start is None and not note and not isinstance(total, Hundredths)
        if start is None:
            start, printed = (now, done), now
        ended = done >= total > 0
        if now - printed >= LINES_S or ended or begins:
            printed = now
            rate = (done - start[1]) / max(1e-9, now - start[0])
            left = "" if ended or not rate else f"{(total - done) / rate:.0f} s left"
            _say(f"{title}: {', '.join(filter(None, [*_counted(done, total, left), note]))}")

    return show


def _counted(done: int, total: int, left: str) -> list[str]:
    """How much is done, and the time that is left; nothing where that is not known."""
    if not total:
        return []
    if isinstance(total, Hundredths):
        return [f"{100 * done // total} %"]
    return [f"{done} of {total}", left]

"""Attacks on the guarantees of DESIGN.md section 7.

    make torture                                  all attacks, under 60 minutes on two cores
    python -m tests.torture --short               the form that `make test-slow` runs, two minutes
    python -m tests.torture --only "mutated audio"

Each file beside this one has a list `ATTACKS`; `__main__.py` runs them, prints the table and writes
`docs/guarantees.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Result:
    """What came of an attack.

    Attributes
    ----------
    inputs : int
        Files, folders or commands that were attacked.
    injected : int
        Faults: mutations, kills, full disks.
    lost : list of str
        One line for each fault that was not survived: what was done, what was expected, what came.
    """

    inputs: int = 0
    injected: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Faults after which the guarantee still held."""
        return self.injected - len(self.lost)


@dataclass(frozen=True)
class Attack:
    """One way to attack a guarantee.

    Attributes
    ----------
    guarantee : int
        Its number in section 7 of DESIGN.md.
    name : str
        Shown in the table.
    run : callable
        `run(folder, count, draw)` injects `count` faults, works in the empty `folder`, and draws
        from the generator `draw`. The same seed gives the same faults.
    count, short : int
        Number of faults in `make torture` and in `make test-slow`; `make test` takes a quarter of
        `short`. With a `short` of 0 the short form leaves the attack out.
    missing : callable
        The reason why the attack cannot run here, empty if it can.
    """

    guarantee: int
    name: str
    run: Callable[[Path, int, np.random.Generator], Result]
    count: int
    short: int
    missing: Callable[[], str] = lambda: ""

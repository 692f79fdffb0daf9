"""Probes on frozen embeddings: what a simple model predicts from them.

Every protocol takes features of all clips and their splits, and returns predictions of the test
clips. What it chooses, it chooses on validation clips; the standardiser is fitted on training clips
only and applied to all.

==========  ========================================================================================
protocol    what it trains
==========  ========================================================================================
linear      logistic or ridge regression, its strength chosen by validation or grouped folds; for
            small sets
jukemir     216 linear layers and small networks, the best on validation tested once
paper       BERT's pooler and a linear layer, one of three rates chosen on validation
few-shot    logistic regression on 1, 2, 5 and 10 clips of each class, many draws (:func:`few_shot`)
==========  ========================================================================================
"""

from collections.abc import Callable

import numpy as np

from patchifier.config import RequestError
from patchifier.datasets.splits import Splits
from patchifier.evaluate.probes.few_shot import few_shot
from patchifier.evaluate.probes.grid import jukemir
from patchifier.evaluate.probes.linear import fit_predict, linear, majority, name
from patchifier.evaluate.probes.pooler import paper
from patchifier.evaluate.probes.protocol import Probed
from patchifier.io import Progress, silent
from patchifier.tasks import Task

__all__ = [
    "PROTOCOLS",
    "Probed",
    "few_shot",
    "fit_predict",
    "jukemir",
    "linear",
    "majority",
    "name",
    "paper",
    "probe",
]

PROTOCOLS: dict[str, Callable[..., Probed]] = {"linear": linear, "jukemir": jukemir, "paper": paper}


def probe(
    protocol: str,
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    splits: Splits,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Probed:
    """Train and choose by a protocol, and predict the test clips.

    Parameters
    ----------
    protocol : "linear", "jukemir" or "paper"
        A row of :data:`PROTOCOLS`.
    task : Task
        Multiclass, multilabel or regression.
    features : ndarray, shape (n, E)
        Of all clips.
    targets : ndarray, shape (n, ...)
        As :func:`patchifier.tasks.encode_targets` gives them; those of test clips are not read.
    splits : Splits
        Training, validation (may be empty) and test clips.
    seed : int
        Of what is drawn.
    progress : callable
        Called with steps done, steps in all, and a note.

    Returns
    -------
    Probed
        Probabilities, or values in the targets' units, (n_test, C).

    Raises
    ------
    RequestError
        If the protocol is unknown, or features, targets and splits do not fit.

    Examples
    --------
    >>> task, rng = Task("one-of", ("low", "high")), np.random.default_rng(0)
    >>> targets = np.arange(40) % 2
    >>> features = rng.normal(size=(40, 4)) + 4 * targets[:, None]
    >>> index = np.arange(40)
    >>> splits = Splits(index[:20], index[20:30], index[30:], groups=index.astype(str))
    >>> probe("linear", task, features, targets, splits).predictions.argmax(1).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """
    if protocol not in PROTOCOLS:
        raise RequestError(
            f"there is no protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[protocol](task, features, targets, splits, seed=seed, progress=progress)

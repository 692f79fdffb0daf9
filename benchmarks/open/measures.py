"""Tasks of the benchmark, measures, and the endpoint.

Every measure takes weights of clips, (R, n), and gives R scores, so that a bootstrap is one product: a clip that is drawn twice has weight two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchifier import statistics, tasks
from patchifier.config import RequestError
from patchifier.tasks import Task

Measure = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 0.04  # of tempo
DRAWS = 2000
COLUMN_SEEDS = 10  # times DRAWS: Holm over hundreds of comparisons needs small p values


@dataclass(frozen=True)
class Question:
    """A task and its measures; the measures of one task are averaged first, then the tasks of a family."""

    family: str
    task: str
    measures: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the manifest: family and task."""
        return f"{self.family}-{self.task}"


QUESTIONS = (  # of the endpoint
    Question("scores", "collection-polyphonic", ("accuracy",)),
    Question("scores", "collection-monophonic", ("accuracy",)),
    Question("scores", "mode", ("accuracy",)),
    Question("scores", "key", ("key score",)),
    Question("scores", "tonic", ("accuracy",)),
    Question("scores", "metre", ("accuracy",)),
    Question("scores", "onset-rate", ("R2",)),
    Question("grooves", "style", ("accuracy",)),
    Question("grooves", "tempo", ("Acc1", "Acc2")),
    Question("grooves", "metre", ("accuracy",)),
    Question("notes", "pitch-class", ("accuracy",)),
    Question("notes", "octave", ("accuracy",)),
    Question("notes", "family", ("accuracy",)),
    Question("notes", "chord-quality", ("accuracy",)),
    Question("notes", "instruments", ("mAP",)),
    Question("recordings", "retrieval", ("recall@1", "recall@10")),
)
DIAGNOSTICS = (
    Question("recordings", "soundtrack", ("accuracy",)),
    Question("recordings", "artist", ("accuracy",)),
)  # confounded: no claim is based on them
FRAMES = (
    Question("grooves", "chords", ("WCSR",)),
    Question("grooves", "beats", ("F",)),
)  # frame-wise tasks, not in the endpoint
FAMILIES = tuple(dict.fromkeys(question.family for question in QUESTIONS))


# --- measures ---


def measure(name: str, task: Task, truth: np.ndarray, predictions: np.ndarray) -> Measure:
    """Return a measure of predictions (n, C) against encoded targets.

    Raises
    ------
    RequestError
        If there is no such measure.
    """
    if name == "R2":
        return r2(truth[:, 0], predictions[:, 0])
    if name == "mAP":
        return average_precision(truth, predictions)
    if name == "accuracy":
        return mean_of((predictions.argmax(1) == truth).astype(float))
    if name == "key score":
        return mean_of(tasks.key_score_matrix(task.names)[truth, predictions.argmax(1)])
    if name in ("Acc1", "Acc2"):
        tempi = np.array([float(label.split()[0]) for label in task.names])
        return mean_of(
            near(tempi[truth], tempi[predictions.argmax(1)], octaves=name == "Acc2").astype(float)
        )
    raise RequestError(
        f"there is no measure {name!r}, expected one of R2, mAP, accuracy, key score, Acc1, Acc2."
    )


def mean_of(values: np.ndarray) -> Measure:
    """Return the weighted mean of the clips' values."""
    return lambda weights: weights @ values / weights.sum(1)


def near(true_bpm: np.ndarray, predicted_bpm: np.ndarray, *, octaves: bool) -> np.ndarray:
    """Whether a tempo is within 4 %; with `octaves`, of its double, triple, half or third too."""
    factors = (1.0, 2.0, 3.0, 1 / 2, 1 / 3) if octaves else (1.0,)
    return np.any(
        [np.abs(predicted_bpm / (factor * true_bpm) - 1) <= TOLERANCE for factor in factors], axis=0
    )


def r2(truth: np.ndarray, predicted: np.ndarray) -> Measure:
    """Return R2: 1 - SSE / SST around the weighted mean of the truth; NaN in a draw with a single value."""

    def of(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        squares = weights @ truth**2
        spread = squares - (weights @ truth) ** 2 / total
        return 1 - weights @ (truth - predicted) ** 2 / np.where(
            spread > 1e-12 * squares, spread, np.nan
        )

    return of


def average_precision(truth: np.ndarray, predicted: np.ndarray) -> Measure:
    """Return the mean over tags of the average precision; a draw without a tag leaves that tag out."""
    order = np.argsort(-predicted, axis=0, kind="stable")  # (n, C)

    def of(weights: np.ndarray) -> np.ndarray:
        columns = []
        for tag in range(truth.shape[1]):
            sorted_truth, sorted_scores = truth[order[:, tag], tag], predicted[order[:, tag], tag]
            drawn = weights[:, order[:, tag]]  # (R, n)
            last = np.append(
                np.flatnonzero(np.diff(sorted_scores)), len(predicted) - 1
            )  # clips of equal score enter together
            retrieved = np.cumsum(drawn, 1)[:, last]
            right = np.cumsum(drawn * sorted_truth, 1)[:, last]
            gained = np.diff(right, axis=1, prepend=0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                columns.append(np.nansum(gained * right / retrieved, axis=1) / right[:, -1])
        return np.nanmean(columns, axis=0)

    return of


def hits(features: np.ndarray, tracks: Sequence[str], depth: int) -> np.ndarray:
    """Whether another clip of the same track is among the nearest `depth` by cosine, for each clip: (n,) of 0 and 1."""
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :depth]
    names = np.asarray(tracks)
    return (names[nearest] == names[:, None]).any(1).astype(float)


def chance_of_hit(tracks: Sequence[str], depth: int) -> float:
    """Expected share of hits if the order were random."""
    names = np.asarray(tracks)
    others = len(names) - 1
    misses = []
    for name in names:
        same = int((names == name).sum()) - 1
        places = np.arange(min(depth, others))
        misses.append(np.prod(np.maximum(others - same - places, 0) / (others - places)))
    return float(1 - np.mean(misses))


# --- the endpoint ---


@dataclass(frozen=True)
class EncoderScore:
    """Score of an encoder on one measure: its runs, the groups of the clips, and the score of chance."""

    question: Question
    measure: str
    groups: tuple[str, ...]
    chance: float
    runs: tuple[Measure, ...]

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Mean over runs: (R,)."""
        return np.mean([run(weights) for run in self.runs], axis=0)

    def normalised(self, weights: np.ndarray) -> np.ndarray:
        """Score between chance (0) and perfect (1)."""
        return normalise(self.score(weights), self.chance)

    def value(self) -> float:
        """Score of the clips, each with weight one."""
        return float(self.score(np.ones((1, len(self.groups))))[0])


def normalise(score: np.ndarray, chance: float, ceiling: float = 1.0) -> np.ndarray:
    """Scale a score so that chance is 0 and the ceiling 1; below chance is below 0.

    Raises
    ------
    RequestError
        If chance is not below the ceiling.
    """
    if not chance < ceiling:
        raise RequestError(
            f"chance is {chance:.3f}, expected less than the ceiling of {ceiling:.3f}: the evaluated side has a single label."
        )
    return (score - chance) / (ceiling - chance)


def draw_weights(
    groups: Sequence[Sequence[str]], draws: int = DRAWS, seed: int = 0
) -> list[np.ndarray]:
    """Draw a bootstrap over the groups that the tasks of a family share: for each task, how often each clip is drawn, (draws + 1, n).

    The first row is the sample itself.
    """
    names = sorted({name for each in groups for name in each})
    number = {name: index for index, name in enumerate(names)}
    generator = np.random.default_rng(seed)
    counts = np.concatenate(
        [
            np.ones((1, len(names))),
            generator.multinomial(len(names), np.full(len(names), 1 / len(names)), draws),
        ]
    )
    return [counts[:, [number[name] for name in each]] for each in groups]


def family_draws(
    answers: Sequence[EncoderScore], seed: int, draws: int = DRAWS
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """Return the normalised score of a family, (draws + 1,), the sample first, and the score of each measure of each task."""
    weights = draw_weights([answer.groups for answer in answers], draws, seed)
    by_task: dict[str, list[np.ndarray]] = {}
    plain = {}
    with np.errstate(
        invalid="ignore", divide="ignore"
    ):  # a draw may miss all clips of a small task
        for answer, drawn in zip(answers, weights, strict=True):
            plain[answer.question.name, answer.measure] = answer.score(drawn)
            by_task.setdefault(answer.question.task, []).append(
                normalise(plain[answer.question.name, answer.measure], answer.chance)
            )
    return np.nanmean([np.mean(each, axis=0) for each in by_task.values()], axis=0), plain


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """Return the figure of the sample, and the 2.5 and 97.5 % points of the draws."""
    return float(draws[0]), *statistics.interval(draws[1:])


def differences(first: str, draws: Mapping[str, np.ndarray]) -> list[dict[str, float | str]]:
    """Compare the first encoder with each other one, paired draw by draw; p values are corrected by Holm."""
    rows = []
    for name, each in draws.items():
        if name != first:
            change = draws[first] - each
            value, low, high = interval(change)
            rows.append(
                {
                    "first": first,
                    "second": name,
                    "value": value,
                    "low": low,
                    "high": high,
                    "p": statistics.two_sided_p(change[1:]),
                }
            )
    for row, corrected in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def column_differences(
    answers: Mapping[str, Sequence[EncoderScore]],
) -> list[dict[str, float | str]]:
    """Compare the first encoder with each other one in each column of the endpoint, paired draw by draw.

    p values are corrected by Holm over all columns and encoders.
    """
    first = next(iter(answers))
    columns = [score for score in answers[first] if score.question in QUESTIONS]
    rows = []
    for column in columns:
        same = {
            name: score
            for name, given in answers.items()
            for score in given
            if (score.question, score.measure) == (column.question, column.measure)
        }
        parts: dict[str, list[np.ndarray]] = {name: [] for name in same}
        with np.errstate(invalid="ignore", divide="ignore"):
            for seed in range(COLUMN_SEEDS):
                [weights] = draw_weights([column.groups], seed=seed)
                for name, score in same.items():
                    parts[name].append(score.score(weights)[min(seed, 1) :])  # the sample once
        place = {"family": column.question.family, "task": column.question.task}
        draws = {name: np.concatenate(part) for name, part in parts.items()}
        rows += [place | {"measure": column.measure} | row for row in differences(first, draws)]
    for row, corrected in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows

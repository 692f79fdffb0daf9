"""What to try where fine-tuning learnt nothing, or no more than the majority."""

from collections.abc import Sequence

from patchifier.evaluate.report.folders import METHODS, Row, to_number

ADVICE = (
    "Try a higher learning rate (--finetune.learning_rates '[1e-5, 1e-4, 1e-3]' takes the one that "
    "validates best) or more steps (--finetune.training.epochs)."
)


def none_above_majority(rows: Sequence[Row]) -> bool:
    """Whether rows of one test have fine-tuned models, none of which is above the majority.

    Examples
    --------
    >>> tuned = {"encoder": "mine", "method": "full", "value": 0.3}
    >>> none_above_majority([tuned, {"encoder": "majority", "method": "none", "value": 0.3}])
    True
    """
    tuned = [row for row in rows if row.get("method") in METHODS and row["encoder"] != "random"]
    majority = [row for row in rows if row.get("encoder") == "majority"]
    if not tuned or not majority:
        return False
    best, least = (max(to_number(row.get("value")) for row in each) for each in (tuned, majority))
    return best <= least


def learnt_nothing_notes(rows: Sequence[Row]) -> list[str]:
    """Name the rows whose predictions are all the same, and what to try.

    The rows are those of one test.

    Examples
    --------
    >>> row = {"encoder": "mine", "method": "full", "learnt_nothing": "every clip is called jazz"}
    >>> learnt_nothing_notes([row])[0]
    'mine, full: learnt nothing: every clip is called jazz.'
    """
    lines = [
        f"{row['encoder']}, {row['method']}: learnt nothing: {row['learnt_nothing']}."
        for row in rows
        if row.get("learnt_nothing")
    ]
    if none_above_majority(rows):
        lines.append("No fine-tuned row is above majority.")
    return [*lines, ADVICE] if lines else []

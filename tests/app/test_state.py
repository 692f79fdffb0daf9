"""Results that are kept: made once, the last few."""

import threading
from concurrent.futures import ThreadPoolExecutor

from patchifier.app.state import Kept


def test_the_same_is_made_once_also_at_the_same_time():
    kept, made, both = Kept(4), [], threading.Barrier(2)

    def ask(key):
        both.wait(5)
        return kept.get(key, lambda: made.append(key) or f"made {key}")

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, ["a", "a"])) == ["made a", "made a"]
    assert made == ["a"]


def test_the_oldest_is_made_again_when_there_are_too_many():
    kept, made = Kept(2), []
    for key in ("a", "b", "c", "c", "a"):
        kept.get(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "a"]

"""Models small enough that a test trains or runs one in seconds."""

from patchifier.config import Config, update

NARROW = {"channels": [4, 4, 4, 4, 8], "width": 16, "layers": 2, "heads": 2, "feed_forward": 32}
WIDE = {"channels": [4, 4, 8, 8, 16], "width": 32, "layers": 2, "heads": 2, "feed_forward": 64}


def config(sizes=NARROW, **sections) -> Config:
    """Config of a model of these sizes, with changes of other sections."""
    return update(Config(), {"model": sizes, **sections})

"""Models small enough that a test trains or runs one in seconds."""

from patchifier.config import Config, update
from tests.builders import TINY as NARROW

WIDE = {"channels": [4, 4, 8, 8, 16], "embed_dim": 32, "n_layers": 2, "n_heads": 2, "mlp_dim": 64}


def config(sizes=NARROW, **sections) -> Config:
    """Config of a model of these sizes, with changes of other sections."""
    return update(Config(), {"model": sizes, **sections})

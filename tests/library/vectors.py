"""Vectors and what a search gives for them."""

import numpy as np
import pytest


def random_vectors(count, size=16, *, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def on_circle(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def cosine(*degrees):
    return pytest.approx(np.cos(np.radians(degrees)), abs=1e-6)


def paths(found):
    return [row.path for row in found]

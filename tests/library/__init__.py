import numpy as np


def require_same_table(first, second, tolerance=0.0):
    """Two tables have the same rows, and vectors that are this near."""
    for name in ("paths", "tags", "metadata"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("start_s", "end_s", "size", "mtime_ns"):
        np.testing.assert_array_equal(first.rows[name], second.rows[name])
    np.testing.assert_allclose(first.vectors, second.vectors, atol=tolerance, rtol=0)

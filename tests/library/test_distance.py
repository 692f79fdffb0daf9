import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.config import RequestError
from patchifier.library import distance
from patchifier.library.stored import FACTS


def gaussian(count, mean, root, *, seed):
    return np.random.default_rng(seed).standard_normal((count, len(mean))) @ root + mean


def with_moments(count, mean, deviations, *, seed=0):
    """Vectors whose mean is exactly `mean` and whose covariance is exactly diag(deviations ** 2)."""
    raw = np.random.default_rng(seed).standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white * deviations + mean


def write(path, vectors, identity="model-a", window_s=None):
    count, size = vectors.shape
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float32).ravel()), size
    )
    columns = {
        "path": [str(i) for i in range(count)],
        "start_s": np.zeros(count),
        "end_s": np.ones(count),
        "embedding": embedding,
    }
    facts = {"format": 1, "model": identity, "window_s": window_s}
    pq.write_table(pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts)}), path)
    return path


def test_gaussians_of_known_distance():
    # |(3, 4)|^2 + (2 - 1)^2 + (1 - 5)^2 = 25 + 1 + 16
    a, b = with_moments(50, [0, 0], [2, 1]), with_moments(70, [3, 4], [1, 5], seed=1)
    assert distance.frechet_distance(a, b).value == pytest.approx(42)
    assert distance.frechet_distance(b, a).value == pytest.approx(42)


def test_covariances_that_do_not_commute():
    # in two dimensions tr sqrt(C) = sqrt(tr C + 2 sqrt(det C)), here for C = A B
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
    shared = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 1 + np.trace(a) + np.trace(b) - 2 * shared
    assert distance.gaussian_distance(np.zeros(2), a, np.array([1.0, 0.0]), b) == pytest.approx(
        expected
    )


def test_a_turn_of_both_sets_changes_nothing_and_a_gain_counts_squared():
    a, b = (
        gaussian(300, np.zeros(6), np.eye(6), seed=0),
        gaussian(200, np.ones(6), 2 * np.eye(6), seed=1),
    )
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    value = distance.frechet_distance(a, b).value
    assert distance.frechet_distance(a @ turn, b @ turn).value == pytest.approx(value)
    assert distance.frechet_distance(3 * a, 3 * b).value == pytest.approx(9 * value)


def test_identical_sets_are_at_distance_zero():
    a = gaussian(1000, np.zeros(8), np.eye(8), seed=0)
    far = gaussian(1000, np.ones(8), np.eye(8), seed=1)
    assert distance.frechet_distance(a, a).value == pytest.approx(0, abs=1e-9)
    assert distance.frechet_distance(a, a[::-1]).value >= 0
    assert abs(distance.kernel_distance(a, a).value) < 0.03 * distance.kernel_distance(a, far).value


def test_the_correction_takes_away_what_the_number_of_rows_adds():
    size = 24
    root = np.random.default_rng(9).standard_normal((size, size)) / np.sqrt(size)
    halves = [np.split(gaussian(2400, np.zeros(size), root, seed=seed), 2) for seed in range(8)]
    results = [distance.frechet_distance(a, b) for a, b in halves]
    raw, corrected = (
        np.mean([result.value for result in results]),
        np.mean([result.corrected for result in results]),
    )
    assert raw > 0.15
    assert abs(corrected) < 0.15 * raw


def test_the_correction_keeps_a_distance_that_is_there():
    size = 16
    a, b = (
        gaussian(1500, np.zeros(size), np.eye(size), seed=0),
        gaussian(700, np.full(size, 0.5), np.eye(size), seed=1),
    )
    result = distance.frechet_distance(a, b)  # truth: 16 * 0.5 ** 2 = 4
    assert abs(result.corrected - 4) < 0.35
    assert result.value > result.corrected
    assert result.fractions[0] == 1
    assert result.values[0] == result.value
    assert list(result.fractions) == sorted(result.fractions, reverse=True)
    assert np.polyfit(1 / np.array(result.fractions), result.values, 1)[0] > 0


def test_without_enough_rows_there_is_no_correction():
    a, b = (
        gaussian(63, np.zeros(8), np.eye(8), seed=0),
        gaussian(500, np.zeros(8), np.eye(8), seed=1),
    )
    assert distance.frechet_distance(a, b).corrected is None
    assert (
        distance.frechet_distance(b, gaussian(64, np.zeros(8), np.eye(8), seed=0)).corrected
        is not None
    )


def test_fewer_rows_than_numbers_are_refused():
    a, b = (
        gaussian(100, np.zeros(8), np.eye(8), seed=0),
        gaussian(8, np.zeros(8), np.eye(8), seed=1),
    )
    with pytest.raises(
        RequestError,
        match=r"the second set has 8 rows of 8 numbers: their covariance is singular.*Embed more files",
    ):
        distance.frechet_distance(a, b)
    distance.frechet_distance(a, gaussian(9, np.zeros(8), np.eye(8), seed=1))
    with pytest.raises(RequestError, match=r"first.parquet has 9 rows, a kernel distance needs 10"):
        distance.kernel_distance(a[:9], a, names=("first.parquet", "b"))


def test_the_kernel_estimate_by_hand():
    # E = 1, k(x, y) = (xy + 1)^3; a = 0, 1: k = 1; b = 1, 2: k = 27; between: 1, 1, 8, 27
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert distance.discrepancy(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_the_kernel_distance_of_known_gaussians():
    # (xy + 1)^3 = 1 + 3xy + 3(xy)^2 + (xy)^3; moments 0, 1, 0 against 1, 2, 4: 3 * 1 + 3 * 1 + 16 = 22
    a, b = (
        gaussian(20_000, np.zeros(1), np.eye(1), seed=0),
        gaussian(20_000, np.ones(1), np.eye(1), seed=1),
    )
    result = distance.kernel_distance(a, b, subsets=40)
    assert abs(result.value - 22) < 2
    assert (result.subsets, result.subset_rows) == (40, 1000)
    assert 0.5 < result.deviation < 10


def test_the_kernel_distance_needs_no_correction():
    halves = [np.split(gaussian(40, np.zeros(4), np.eye(4), seed=seed), 2) for seed in range(40)]
    results = [distance.kernel_distance(a, b, subsets=20) for a, b in halves]
    values = np.array([result.value for result in results])
    assert {result.subset_rows for result in results} == {10}
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))


def test_the_same_seed_gives_the_same_bits():
    a, b = (
        gaussian(300, np.zeros(4), np.eye(4), seed=0),
        gaussian(300, np.ones(4), np.eye(4), seed=1),
    )
    for function in (distance.frechet_distance, distance.kernel_distance):
        assert function(a, b, seed=3) == function(a, b, seed=3)
        assert function(a, b, seed=3) != function(a, b, seed=4)


def test_two_tables(tmp_path):
    a, b = (
        write(tmp_path / "a.parquet", with_moments(200, [0, 0], [2, 1])),
        write(tmp_path / "b.parquet", with_moments(150, [3, 4], [1, 5])),
    )
    result = distance.distance(a, b)
    assert result.frechet.value == pytest.approx(42, rel=1e-5)
    assert result.to_dict()["rows"] == [200, 150]
    assert result.to_dict()["kernel"] == result.kernel.value > 0


def test_tables_that_do_not_go_together(tmp_path):
    vectors = with_moments(50, [0, 0], [2, 1])
    a, b = write(tmp_path / "a.parquet", vectors), write(tmp_path / "b.parquet", vectors, "model-b")
    with pytest.raises(
        RequestError,
        match=r"a.parquet and .*b.parquet do not go together: model model-a against model-b",
    ):
        distance.distance(a, b)
    wide = write(tmp_path / "wide.parquet", np.ones((50, 3)))
    with pytest.raises(RequestError, match="vector size 2 against 3"):
        distance.distance(a, wide)
    with pytest.raises(RequestError, match="cannot be read as a table"):
        distance.distance(a, tmp_path / "missing.parquet")
    short = write(tmp_path / "short.parquet", vectors, window_s=2.0)
    with pytest.raises(RequestError, match=r"about None s against 2.0 s"):
        distance.distance(a, short)
    empty = write(tmp_path / "empty.parquet", np.zeros((0, 2)))
    with pytest.raises(RequestError, match=r"empty.parquet has 0 rows"):
        distance.distance(a, empty)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((20, 2)), np.ones((20, 3)), "shapes"),
        (np.ones(20), np.ones((20, 1)), "shapes"),
        (np.full((20, 2), np.nan), np.ones((20, 2)), "not all finite"),
    ],
)
def test_sets_that_make_no_sense(a, b, message):
    for function in (distance.frechet_distance, distance.kernel_distance):
        with pytest.raises(RequestError, match=message):
            function(a, b)


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_rows": 1}])
def test_subsets_that_make_no_sense(options):
    with pytest.raises(RequestError, match="expected at least"):
        distance.kernel_distance(np.ones((20, 2)), np.ones((20, 2)), **options)

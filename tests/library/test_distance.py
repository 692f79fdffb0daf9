import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchifier.config import RequestError
from patchifier.library import distance
from patchifier.library.stored import FACTS


def gaussian(count, size, *, mean=0.0, root=1.0, seed=0):
    """Vectors of one deviation in every direction, or of a given root of the covariance."""
    root = root * np.eye(size) if np.isscalar(root) else root
    return np.random.default_rng(seed).standard_normal((count, size)) @ root + np.full(size, mean)


def with_moments(count, mean, deviations, *, seed=0):
    """Vectors whose mean and covariance, diag(deviations ** 2), are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white * deviations + mean


def write(path, vectors, identity="model-a", window_s=None):
    count, size = vectors.shape
    flat = pa.array(vectors.astype(np.float32).ravel())
    columns = {"path": [str(row) for row in range(count)], "start_s": np.zeros(count)}
    columns["end_s"] = np.ones(count)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, size)
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
    found = distance.gaussian_distance(np.zeros(2), a, np.array([1.0, 0.0]), b)
    assert found == pytest.approx(expected)


def test_a_turn_of_both_sets_changes_nothing_and_a_gain_counts_squared():
    a, b = gaussian(300, 6), gaussian(200, 6, mean=1, root=2, seed=1)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    value = distance.frechet_distance(a, b).value
    assert distance.frechet_distance(a @ turn, b @ turn).value == pytest.approx(value)
    assert distance.frechet_distance(3 * a, 3 * b).value == pytest.approx(9 * value)


def test_identical_sets_are_at_distance_zero():
    a, far = gaussian(1000, 8), gaussian(1000, 8, mean=1, seed=1)
    assert distance.frechet_distance(a, a).value == pytest.approx(0, abs=1e-9)
    assert distance.frechet_distance(a, a[::-1]).value >= 0
    assert abs(distance.kernel_distance(a, a).value) < 0.03 * distance.kernel_distance(a, far).value


def test_the_correction_takes_away_what_the_number_of_rows_adds():
    size = 24
    root = np.random.default_rng(9).standard_normal((size, size)) / np.sqrt(size)
    halves = [np.split(gaussian(2400, size, root=root, seed=seed), 2) for seed in range(8)]
    results = [distance.frechet_distance(a, b) for a, b in halves]
    raw = np.mean([result.value for result in results])
    corrected = np.mean([result.corrected for result in results])
    assert raw > 0.15
    assert abs(corrected) < 0.15 * raw


def test_the_correction_keeps_a_distance_that_is_there():
    a, b = gaussian(1500, 16), gaussian(700, 16, mean=0.5, seed=1)
    result = distance.frechet_distance(a, b)  # truth: 16 * 0.5 ** 2 = 4
    assert abs(result.corrected - 4) < 0.35
    assert result.value > result.corrected
    assert result.fractions[0] == 1
    assert result.values[0] == result.value
    assert list(result.fractions) == sorted(result.fractions, reverse=True)
    assert np.polyfit(1 / np.array(result.fractions), result.values, 1)[0] > 0


def test_without_enough_rows_there_is_no_correction():
    many = gaussian(500, 8, seed=1)
    assert distance.frechet_distance(gaussian(63, 8), many).corrected is None
    assert distance.frechet_distance(many, gaussian(64, 8)).corrected is not None


def test_fewer_rows_than_numbers_are_refused():
    a, few = gaussian(100, 8), gaussian(9, 8, seed=1)
    said = r"the second set has 8 rows of 8 numbers: their covariance is singular.*Embed more files"
    with pytest.raises(RequestError, match=said):
        distance.frechet_distance(a, few[:8])
    distance.frechet_distance(a, few)
    with pytest.raises(RequestError, match=r"first.parquet has 9 rows, a kernel distance needs 10"):
        distance.kernel_distance(few, a, names=("first.parquet", "b"))


def test_the_kernel_estimate_by_hand():
    # E = 1, k(x, y) = (xy + 1)^3; a = 0, 1: k = 1; b = 1, 2: k = 27; between: 1, 1, 8, 27
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert distance.discrepancy(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_the_kernel_distance_of_known_gaussians():
    # (xy + 1)^3 = 1 + 3xy + 3(xy)^2 + (xy)^3
    # moments 0, 1, 0 against 1, 2, 4: 3 * 1 + 3 * 1 + 16 = 22
    a, b = gaussian(20_000, 1), gaussian(20_000, 1, mean=1, seed=1)
    result = distance.kernel_distance(a, b, subsets=40)
    assert abs(result.value - 22) < 2
    assert (result.subsets, result.subset_rows) == (40, 1000)
    assert 0.5 < result.deviation < 10


def test_the_kernel_distance_needs_no_correction():
    halves = [np.split(gaussian(40, 4, seed=seed), 2) for seed in range(40)]
    results = [distance.kernel_distance(a, b, subsets=20) for a, b in halves]
    values = np.array([result.value for result in results])
    assert {result.subset_rows for result in results} == {10}
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))


def test_the_same_seed_gives_the_same_bits():
    a, b = gaussian(300, 4), gaussian(300, 4, mean=1, seed=1)
    for function in (distance.frechet_distance, distance.kernel_distance):
        assert function(a, b, seed=3) == function(a, b, seed=3)
        assert function(a, b, seed=3) != function(a, b, seed=4)


def test_two_tables(tmp_path):
    a = write(tmp_path / "a.parquet", with_moments(200, [0, 0], [2, 1]))
    b = write(tmp_path / "b.parquet", with_moments(150, [3, 4], [1, 5]))
    result = distance.distance(a, b)
    assert result.frechet.value == pytest.approx(42, rel=1e-5)
    assert result.to_dict()["rows"] == [200, 150]
    assert result.to_dict()["kernel"] == result.kernel.value > 0


def test_tables_that_do_not_go_together(tmp_path):
    vectors = with_moments(50, [0, 0], [2, 1])
    a = write(tmp_path / "a.parquet", vectors)
    for said, given in {
        r"a.parquet and .*b.parquet do not go together: model model-a against model-b": (
            vectors,
            "model-b",
        ),
        "vector size 2 against 3": (np.ones((50, 3)),),
        r"about None s against 2.0 s": (vectors, "model-a", 2.0),
        r"b.parquet has 0 rows": (np.zeros((0, 2)),),
    }.items():
        with pytest.raises(RequestError, match=said):
            distance.distance(a, write(tmp_path / "b.parquet", *given))
    with pytest.raises(RequestError, match="cannot be read as a table"):
        distance.distance(a, tmp_path / "missing.parquet")


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

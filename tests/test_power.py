"""Power spectra by products of matrices against numpy's FFT."""

import math

import numpy as np
import pytest

from patchifier.power import LOUD, PowerSpectrum, factors

# powers of two, other even sizes, an odd one, a prime
SIZES = [64, 100, 512, 768, 1023, 1024, 2048, 4096, 127]
HOP, FRAMES = 37, 6


def spectra(
    n: int, *, n_bins: int, dtype: type, start: int = 0, level: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The power that the transform gives, and numpy's, (F, T) each."""
    samples = np.random.default_rng(n).uniform(-1, 1, n + (FRAMES - 1) * HOP) + level
    samples = samples.astype(dtype)
    window = np.hanning(n)
    power = PowerSpectrum(window, n_bins, np.dtype(dtype))
    found = power(samples, start=start, hop=HOP, count=FRAMES)
    edge = abs(start)
    around = np.pad(samples.astype(np.float64), edge)[edge + start :]
    frames = np.lib.stride_tricks.sliding_window_view(around, n)[::HOP][:FRAMES]
    assert len(frames) == FRAMES
    return found, np.abs(np.fft.fft(frames * window).T[: len(found)]) ** 2


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("n", SIZES)
def test_each_frequency_has_the_power_that_numpys_fft_gives(n, dtype, atol):
    found, wanted = spectra(n, n_bins=1 + n // 2, dtype=dtype)
    assert found.dtype == dtype
    assert len(found) > n // 2
    np.testing.assert_allclose(found, wanted, atol=atol * wanted.max(), rtol=0)


@pytest.mark.parametrize("n_bins", [1, 33, 200, 513])
def test_the_frequencies_that_are_needed_are_there(n_bins):
    found, wanted = spectra(1024, n_bins=n_bins, dtype=np.float64)
    assert n_bins <= len(found) < n_bins + 128
    np.testing.assert_allclose(found, wanted, atol=1e-13 * wanted.max())


@pytest.mark.parametrize("start", [-700, -37, -5, 5, 300])
@pytest.mark.parametrize("n", [127, 512])
def test_beyond_the_samples_are_zeros(n, start):
    found, wanted = spectra(n, n_bins=1 + n // 2, dtype=np.float64, start=start)
    np.testing.assert_allclose(found, wanted, atol=1e-13 * wanted.max())


@pytest.mark.parametrize("n", [127, 512, 1023])
def test_a_loud_level_is_part_of_the_power(n):
    found, wanted = spectra(n, n_bins=1 + n // 2, dtype=np.float64, level=3.0)
    np.testing.assert_allclose(found, wanted, atol=1e-13 * wanted.max())


@pytest.mark.parametrize("level", [LOUD / 2, 0.5, 1.0, 200.0])
@pytest.mark.parametrize("n", [512, 2048, 4096])
def test_a_constant_leaves_nothing_that_counts_in_other_frequencies(n, level):
    """Below -100 dB re full scale in any band: the least is 1e-10, and no filter is above 1."""
    turns = np.arange(n) / n
    power = PowerSpectrum(0.5 - 0.5 * np.cos(2 * np.pi * turns), 1 + n // 2, np.dtype(np.float32))
    found = power(np.full(3 * n, level, np.float32), hop=512, count=2)
    np.testing.assert_allclose(found[0], (level * n / 2) ** 2, rtol=1e-5)
    np.testing.assert_allclose(found[1], (level * n / 4) ** 2, rtol=1e-5)
    assert found[2:].max() < 1e-10


@pytest.mark.parametrize("n", [*SIZES, 1, 2, 254])
def test_factors_give_the_size(n):
    p, q, r = factors(n, 1 + n // 2)
    assert math.prod((p, q, r)) == n
    assert max(p, q, r) <= 32 or n in (127, 254)


def test_a_frame_does_not_depend_on_those_beside_it():
    samples = np.random.default_rng(0).uniform(-1, 1, 140 * 512).astype(np.float32)
    power = PowerSpectrum(np.hanning(2048), 1024, np.dtype(np.float32))
    whole = power(samples, hop=512, count=128).copy()
    assert np.array_equal(power(samples, hop=512, count=128), whole)
    for first, count in ((0, 16), (16, 32), (32, 96), (112, 16)):
        part = power(samples, start=512 * first, hop=512, count=count)
        expected = whole[:, first : first + count]
        np.testing.assert_allclose(part, expected, atol=1e-7 * whole.max(), rtol=1e-5)

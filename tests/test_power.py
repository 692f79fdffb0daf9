"""Power spectra by products of matrices against numpy's FFT."""

import numpy as np
import pytest

from patchifier.power import PowerSpectrum

# powers of two, other even sizes, an odd one, a prime
SIZES = [64, 100, 512, 768, 1023, 1024, 2048, 4096, 127]


def spectra(
    n: int, *, n_bins: int, dtype: type, hop: int = 37
) -> tuple[PowerSpectrum, np.ndarray, np.ndarray]:
    """The transform, its squares (D, 2, C, T), and numpy's power (F, T)."""
    samples = np.random.default_rng(n).uniform(-1, 1, n + 5 * hop + 3).astype(dtype)
    window = np.hanning(n)
    power = PowerSpectrum(window, n_bins, np.dtype(dtype))
    frames = np.lib.stride_tricks.sliding_window_view(samples, n)[::hop].astype(np.float64)
    return power, power(power.frames(samples, hop=hop)), np.abs(np.fft.rfft(frames * window).T) ** 2


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-13), (np.float32, 1e-6)])
@pytest.mark.parametrize("n", SIZES)
def test_each_frequency_has_the_power_that_numpys_fft_gives(n, dtype, atol):
    power, squares, wanted = spectra(n, n_bins=1 + n // 2, dtype=dtype)
    assert squares.dtype == dtype
    assert set(power.bins.ravel()) == set(range(1 + n // 2))
    np.testing.assert_allclose(squares.sum(1), wanted[power.bins], atol=atol * wanted.max(), rtol=0)


@pytest.mark.parametrize("n_bins", [1, 33, 200, 513])
def test_the_frequencies_that_are_needed_are_there(n_bins):
    power, squares, wanted = spectra(1024, n_bins=n_bins, dtype=np.float64)
    assert set(range(n_bins)) <= set(power.bins.ravel())
    np.testing.assert_allclose(squares.sum(1), wanted[power.bins], atol=1e-13 * wanted.max())


@pytest.mark.parametrize("n", [64, 127, 768, 2048])
def test_filters_count_each_frequency_once(n):
    power, squares, wanted = spectra(n, n_bins=1 + n // 2, dtype=np.float64)
    filters = np.random.default_rng(0).random((5, 1 + n // 2))
    found = np.tensordot(power.filters(filters), squares, axes=3)
    np.testing.assert_allclose(found, filters @ wanted, rtol=1e-12)

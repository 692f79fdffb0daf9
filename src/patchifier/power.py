"""Power spectra of frames as two products of matrices: a Fourier transform without an FFT library.

The four-step transform (Bailey 1990) of n = a b samples, on the index 0 <= b i + j < n of a sample
and the frequency c + a d, takes the product over i of the first matrix, which also holds the window
and the twiddle factors, and the product over j of the second. Real input has one half of the
frequencies c, since the rest are conjugates. Products of matrices use all of a processor's
arithmetic. On an Intel Xeon this takes 1.2 times as long as scipy's FFT, and numpy's twice as long;
on an AMD EPYC it takes 2.7 times as long, and numpy's 1.6 times (``benchmarks/log_mel.py``).

Shapes: S samples, n samples in a frame, T frames, c and d indices of a frequency, F = 1 + n // 2.
"""

import numpy as np

COLUMNS = 64  # a: c has 33 values
SMALLEST = 1e-12  # of the spectrum of a constant, relative to its largest value


class PowerSpectrum:
    """Squared real and imaginary parts of the Fourier transform of windowed frames.

    Parameters
    ----------
    window : numpy.ndarray, shape (n,), float64
        Each frame is multiplied by it.
    n_bins : int
        Frequencies that are needed, from 0 on.
    dtype : numpy.dtype
        Of the frames: float32 or float64.

    Attributes
    ----------
    bins : numpy.ndarray, shape (D, C), int
        Frequency at each place of the result; some are at two places. Blocks of two rows hold
        rising stretches of frequencies.

    Examples
    --------
    >>> power = PowerSpectrum(np.hanning(64), 33, np.dtype("float32"))
    >>> frames = power.frames(np.zeros(1000, np.float32), hop=16)
    >>> power(frames).shape == (*power.bins.shape[:1], 2, *power.bins.shape[1:], 59)
    True
    """

    def __init__(self, window: np.ndarray, n_bins: int, dtype: np.dtype) -> None:
        n = len(window)
        a = max(size for size in range(1, COLUMNS + 1) if n % size == 0)
        b = n // a
        self.n, self.a, self.b = n, a, b
        i, j, c = np.arange(a), np.arange(b), np.arange(a // 2 + 1)
        d = _folded_order(b)[: 2 * -(-n_bins // a)]
        self.bins = c + a * d[:, None]
        self.bins = np.minimum(self.bins, n - self.bins)  # (D, C)
        turns = np.outer(c, i) / a + (j[:, None] * c / n)[..., None]  # (b, C, a)
        first = np.exp(-2j * np.pi * turns) * window.reshape(a, b).T[:, None]
        self.first = np.concatenate([first.real, first.imag], axis=1).astype(dtype)  # (b, 2 C, a)
        second = np.exp(-2j * np.pi * np.outer(d, j) / b)
        real = np.stack([second.real, -second.imag], axis=-1)  # of the real part: (D, b, 2)
        imaginary = np.stack([second.imag, second.real], axis=-1)
        rows = np.stack([real, imaginary], axis=1)  # (D, 2, b, 2)
        self.second = rows.reshape(2 * len(d), 2 * b).astype(dtype)
        constant = np.fft.fft(window)[(c + a * d[:, None]) % n]  # of a constant of 1: (D, C)
        parts = np.stack([constant.real, constant.imag], axis=1)  # (D, 2, C)
        self.places = np.flatnonzero(np.abs(parts) > SMALLEST * np.abs(parts).max())
        self.constant = parts.ravel()[self.places, None].astype(dtype)

    def frames(self, samples: np.ndarray, *, hop: int) -> np.ndarray:
        """View (b, a, T) of the frames that start every `hop` of the samples (S,)."""
        step = samples.strides[0]
        count = 1 + (len(samples) - self.n) // hop
        shape, strides = (self.b, self.a, count), (step, self.b * step, hop * step)
        return np.lib.stride_tricks.as_strided(samples, shape, strides, writeable=False)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Squares (D, 2, C, T) of the real and imaginary parts of frames (b, a, T).

        The mean of a frame is left out of the products and added behind them, so that a constant
        leaves no rounding in other frequencies.
        """
        samples = np.array(frames, order="C")
        level = samples.reshape(self.n, -1).mean(axis=0)  # (T,)
        samples -= level
        partial = self.first @ samples  # (b, 2 C, T)
        parts = self.second @ partial.reshape(2 * self.b, -1)  # (2 D, C T)
        parts = parts.reshape(-1, len(level))  # (2 D C, T)
        parts[self.places] += self.constant * level
        np.multiply(parts, parts, out=parts)
        return parts.reshape(len(self.bins), 2, -1, len(level))

    def filters(self, filters: np.ndarray) -> np.ndarray:
        """Filters (M, F) arranged as the result, (M, D, 2, C): each frequency counts once."""
        weights = np.zeros((len(filters), self.bins.size))
        bins, places = np.unique(self.bins, return_index=True)
        inside = bins < filters.shape[1]
        weights[:, places[inside]] = filters[:, bins[inside]]
        shaped = weights.reshape(len(filters), len(self.bins), 1, -1)
        return np.repeat(shaped, 2, axis=2)


def _folded_order(b: int) -> np.ndarray:
    """0, b - 1, 1, b - 2, ...: frequencies c + a d of two neighbours are a stretch of a bins."""
    pairs = np.stack([np.arange(b), np.arange(b)[::-1]], axis=1).ravel()
    return pairs[:b]

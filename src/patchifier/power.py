"""Power spectra of frames as three products of matrices: a Fourier transform without FFT library.

A transform of n = p q r samples in three steps (Cooley and Tukey 1965). A sample is at the index
q r h + r i + j, a frequency at c + p e + p q d, where h and c count to p, i and e to q, j and d to
r. The products are over h (with the window), i and j; factors that a step leaves for the next one
are in the next one's matrices. Real input has one half of the frequencies c, since the rest are
conjugates. Small products of matrices use all of a processor's arithmetic, where numpy's FFT uses
one number at a time (``benchmarks/log_mel.py``).

Shapes: S samples, n samples in a frame, T frames, C = 1 + p // 2, D values of d that are needed.
"""

import itertools
import math
import threading

import numpy as np

LOUD = 1 / 32  # means of a frame below it round to less than the quietest power that counts
TOGETHER = 16  # rows that become columns at once: more evict each other from a cache
SMALLEST = 1e-12  # of the spectrum of a constant, relative to its largest value


class PowerSpectrum:
    """Power of the Fourier transform of windowed frames.

    Parameters
    ----------
    window : numpy.ndarray, shape (n,), float64
        Each frame is multiplied by it.
    n_bins : int
        Frequencies that are needed, from 0 on.
    dtype : numpy.dtype
        Of the samples: float32 or float64.

    Attributes
    ----------
    factors : tuple of int
        p, q, r.
    rows : int
        Frequencies in the result, from 0 on: p q D.

    Examples
    --------
    >>> power = PowerSpectrum(np.hanning(64), 33, np.dtype("float32"))
    >>> power(np.zeros(1000, np.float32), hop=16, count=59).shape == (power.rows, 59)
    True
    """

    def __init__(self, window: np.ndarray, n_bins: int, dtype: np.dtype) -> None:
        n, self.dtype = len(window), dtype
        self.n, self.factors = n, factors(n, n_bins)
        p, q, r = self.factors
        D = -(-n_bins // (p * q))
        self.rows = p * q * D
        h, c, i, e = np.arange(p), np.arange(p // 2 + 1), np.arange(q), np.arange(q)
        self.mirrored = (p - 1) // 2  # values of c, from 1 on, whose conjugates are needed
        # values of c whose first step is real
        self.real = slice(1) if p % 2 else slice(None, None, p // 2)
        windows = window.reshape(p, q, r).transpose(1, 2, 0)[:, :, None]  # (q, r, 1, p)
        first = np.exp(-2j * np.pi * np.outer(c, h) / p) * windows  # (q, r, C, p)
        complex_c = first[:, :, 1 : 1 + self.mirrored]
        both = np.stack([complex_c.real, complex_c.imag], axis=3).reshape(q, r, -1, p)
        self.first = np.concatenate([first[:, :, self.real].real, both], axis=2).astype(dtype)
        turns = (c[:, None, None] + p * e[:, None]) * i / (p * q)
        second = np.stack(_parts(np.exp(-2j * np.pi * turns)), axis=2)  # (C, q, 2, 2 q)
        second = second.reshape(len(c), 2 * q, 2 * q).astype(dtype)
        self.second_real = second[self.real, :, :q].copy()  # (1 or 2, 2 q, q)
        self.second = second[1 : 1 + self.mirrored]
        steps = p * (e[:, None] + q * np.arange(D))  # (q, D)
        back = np.arange(self.mirrored, 0, -1)[:, None, None]  # in the order of frequencies
        self.third = self._third(c[:, None, None] + steps)  # (C, q, 2 D, 2 r)
        self.third_mirrored = self._third(n - p + back - steps)
        k = np.arange(self.rows)
        k = np.where(k % p < len(c), k, n - k)  # a conjugate has the other sign
        constant = np.fft.fft(window)[k]  # of a constant of 1
        parts = np.concatenate([constant.real, constant.imag])  # (2 p q D,)
        self.places = np.flatnonzero(np.abs(parts) > SMALLEST * np.abs(parts).max())
        self.constant = parts[self.places, None].astype(dtype)

    def _third(self, k: np.ndarray) -> np.ndarray:
        """Matrices (..., 2 D, 2 r) of the last step to frequencies (..., D)."""
        turns = k[..., None] * np.arange(self.factors[2]) / self.n
        return np.concatenate(_parts(np.exp(-2j * np.pi * turns)), axis=-2).astype(self.dtype)

    def __call__(self, samples: np.ndarray, *, hop: int, count: int, start: int = 0) -> np.ndarray:
        """Power (rows, T) of `count` frames, one every `hop` of the samples (S,) from `start` on.

        Beyond the samples, also where `start` is below 0, are zeros. A loud mean of a frame is left
        out of the products and added behind them, so that a constant leaves no rounding in other
        frequencies. The result is a buffer of this thread, which the next call overwrites.
        """
        frames, level = self._frames(samples, start, hop, count)  # (q, r, p, T), (T,)
        p, q, r = self.factors
        C, M, D = p // 2 + 1, self.mirrored, self.rows // (p * q)
        columns = _buffer(1, (r, p, q, count), self.dtype)
        np.matmul(self.first, frames, out=columns.transpose(2, 0, 1, 3))
        real, both = columns[:, : p - 2 * M], columns[:, p - 2 * M :]
        rows = _buffer(0, (C, 2 * q, r, count), self.dtype)
        places = rows.transpose(2, 0, 1, 3)  # (r, C, 2 q, T)
        np.matmul(self.second_real, real, out=places[:, self.real])
        np.matmul(self.second, both.reshape(r, M, 2 * q, count), out=places[:, 1 : 1 + M])
        rows = rows.reshape(C, q, 2 * r, count)
        parts = _buffer(1, (2 * D, q, p, count), self.dtype)
        places = parts.transpose(2, 1, 0, 3)  # (p, q, 2 D, T)
        np.matmul(self.third, rows, out=places[:C])
        np.matmul(self.third_mirrored, rows[M:0:-1, ::-1], out=places[C:])
        parts = parts.reshape(-1, count)
        if level is not None:
            parts[self.places] += self.constant * level
        np.multiply(parts, parts, out=parts)
        return np.add(parts[: self.rows], parts[self.rows :], out=parts[: self.rows])

    def _frames(
        self, samples: np.ndarray, start: int, hop: int, count: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames (q, r, p, T) without their level (T,), and that level if one is loud."""
        n, (p, q, r) = self.n, self.factors
        hops = count - 1 + -(-n // hop)
        rows = _stretch(samples, start, hops * hop).reshape(hops, hop)
        columns = _buffer(2, (hop, hops), self.dtype)
        for first in range(0, hops, TOGETHER):
            columns[:, first : first + TOGETHER] = rows[first : first + TOGETHER].T
        frames = _buffer(0, (q * r, p, count), self.dtype)
        edges = sorted({*range(0, n, hop), *range(0, n, q * r), n})
        for first, last in itertools.pairwise(edges):
            place, h = first % (q * r), first // (q * r)
            inside = columns[first % hop :, first // hop :][: last - first, :count]
            frames[place : place + last - first, h] = inside
        level = self._level(rows, count)
        if level is not None:
            frames -= level
        return frames.reshape(q, r, p, count), level

    def _level(self, rows: np.ndarray, count: int) -> np.ndarray | None:
        """Mean (T,) of the whole hops in each frame, 0 if it is not loud; of rows (hops, hop)."""
        hop = rows.shape[1]
        means = rows @ np.full(hop, 1 / hop, self.dtype)
        if means.max() < LOUD and means.min() > -LOUD:
            return None
        level = np.convolve(means, np.full(self.n // hop, hop / self.n, self.dtype), "valid")
        level = np.where(np.abs(level) < LOUD, self.dtype.type(0), level)[:count]
        return level if level.any() else None


def _stretch(samples: np.ndarray, start: int, count: int) -> np.ndarray:
    """So many samples from `start` on; beyond the ends are zeros."""
    inside = samples[max(0, start) : max(0, start + count)]
    if len(inside) == count:
        return inside
    before = min(max(0, -start), count)
    return np.pad(inside, (before, count - before - len(inside)))


_buffers = threading.local()  # new memory costs as much as the products


def _buffer(number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Buffer of a number that this thread has, with what is in it, as an array."""
    size = math.prod(shape) * dtype.itemsize
    held: np.ndarray | None = getattr(_buffers, f"number_{number}", None)
    if held is None or held.nbytes < size:
        held = np.empty(size, np.uint8)
        setattr(_buffers, f"number_{number}", held)
    return held[:size].view(dtype).reshape(shape)


def _parts(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two real matrices (..., K, 2 N), to real and to imaginary parts, of complex (..., K, N)."""
    return (
        np.concatenate([numbers.real, -numbers.imag], axis=-1),
        np.concatenate([numbers.imag, numbers.real], axis=-1),
    )


def factors(n: int, n_bins: int) -> tuple[int, int, int]:
    """p, q, r with the fewest multiplications; the copies before the first step cost some more.

    Examples
    --------
    >>> factors(2048, 1024)
    (16, 8, 16)
    """

    def cost(p: int, q: int) -> float:
        C, D = p // 2 + 1, -(-n_bins // (p * q))
        return 0.7 * p + 2 * q * C / p + 2 * D

    divisors = [size for size in range(1, n + 1) if n % size == 0]
    pairs = [(p, q) for p in divisors for q in divisors if n // p % q == 0]
    p, q = min(pairs, key=lambda pair: cost(*pair))
    return p, q, n // p // q

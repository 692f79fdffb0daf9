"""Where two fingerprints share a stretch, whatever its offset."""

import numpy as np
import pytest

from patchifier import matching
from patchifier.config import SpectrogramConfig
from patchifier.matching import PrintIndex, agreement, print_of

CONFIG = SpectrogramConfig()


def log_mel(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.3, size=(frames, CONFIG.n_bands))


@pytest.mark.parametrize("shift", [0, 37, -50])
def test_a_shared_stretch_is_found_at_its_offset(shift: int) -> None:
    sound = log_mel(600, 0)
    one, two = sound[max(0, -shift) : 500], sound[max(0, shift) : 500]
    index = PrintIndex([print_of(log_mel(400, 1), CONFIG).bits, print_of(two, CONFIG).bits], CONFIG)
    found = index.best(print_of(one, CONFIG))
    assert found[1].offset == -shift
    assert found[1].score == 1
    assert 0 not in found or found[0].score < matching.SIMILAR


def test_noise_lowers_the_score_and_the_stretch_is_still_found() -> None:
    sound = log_mel(600, 0)
    noisy = sound + log_mel(600, 2) / 4
    found = PrintIndex([print_of(noisy, CONFIG).bits], CONFIG).best(print_of(sound, CONFIG))
    assert found[0].offset == 0
    assert matching.SIMILAR < found[0].score < 1


def test_agreement_is_that_of_the_whole_overlap() -> None:
    sound, other = log_mel(600, 0), log_mel(600, 3)
    half = np.concatenate([sound[:300], other[300:]])
    one, two = print_of(sound, CONFIG).bits, print_of(half, CONFIG).bits
    assert agreement(one, one, 0) == 1
    assert agreement(one, two, 0) == pytest.approx(0.75, abs=0.03)
    assert agreement(one[:10], two, 20) == pytest.approx(0.5, abs=0.2)
    assert agreement(one, two, len(two)) == 0


@pytest.mark.parametrize("frames", [1, 13, 100])
def test_an_overlap_below_three_seconds_is_no_match(frames: int) -> None:
    sound = log_mel(600, 0)
    index = PrintIndex([print_of(sound[:frames], CONFIG).bits], CONFIG)
    assert all(match.score == 0 for match in index.best(print_of(sound, CONFIG)).values())


def test_silence_has_no_codes() -> None:
    silence = print_of(np.full((500, CONFIG.n_bands), -1.0), CONFIG)
    assert not PrintIndex([silence.bits], CONFIG).best(silence)

"""The channels of a file: their mean, and which of them is for low-frequency effects.

A file of surround sound has a channel for effects below 120 Hz (LFE), which a player adds at a
level of its own or not at all. FFmpeg leaves it out of a mix, and so do new models
(``embed.mix_lfe``).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from soundfile import _ffi, _snd

if TYPE_CHECKING:
    import av

GET_CHANNEL_MAP = 0x1100  # of libsndfile's sf_command
LFE = 11  # in libsndfile's map
WITH_LFE = (6, 7, 8)  # channels of 5.1, 6.1 and 7.1
FOURTH = ("WAV", "WAVEX", "W64", "RF64", "AIFF", "FLAC")  # formats: where their LFE is
MASK, MASK_LFE = "WAVEFORMATEXTENSIBLE_CHANNEL_MASK", 0x8  # a tag of FLAC: a bit for each channel
# FFmpeg's names of sample formats
SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


def mean(block: np.ndarray) -> np.ndarray:
    """Mean (S,) of the channels of a block (S, channels).

    They are added one by one: numpy's mean over a few columns takes seven times as long.
    """
    if block.shape[1] == 1:
        return block[:, 0]
    total = block[:, 0] + block[:, 1]
    for channel in block.T[2:]:
        total += channel
    total /= np.float32(block.shape[1])
    return total


def lfe_of_sndfile(sound: soundfile.SoundFile) -> int | None:
    """Which channel of a file is the LFE, if one is.

    The file's own map says so. Without one, 6 to 8 channels are 5.1, 6.1 and 7.1: the LFE is the
    fourth in wav, AIFF and FLAC, and the last in Ogg and ALAC. In other files all are mixed.
    """
    count = sound.channels
    if count < 3:
        return None
    places = _ffi.new("int[]", count)
    size = _ffi.sizeof("int") * count
    known = _snd.sf_command(sound._file, GET_CHANNEL_MAP, places, size)
    listed = list(places)
    if known and len(set(listed)) == count and all(0 < place < 32 for place in listed):
        return listed.index(LFE) if LFE in listed else None
    if sound.format == "FLAC" and (mask := _mask_of_flac(sound.name)):
        return (mask & (MASK_LFE - 1)).bit_count() if mask & MASK_LFE else None
    if count not in WITH_LFE:
        return None
    if sound.format == "OGG" or sound.subtype.startswith("ALAC"):
        return count - 1
    return 3 if sound.format in FOURTH else None


def _mask_of_flac(file: Any) -> int:
    """Which channels a FLAC file says that it has; 0 if it does not say, or is no file by name."""
    import mutagen.flac

    try:
        return int(mutagen.flac.FLAC(file)[MASK][0], 16)
    except (mutagen.MutagenError, KeyError, ValueError, TypeError, OSError):
        return 0


def lfe_of_frame(frame: "av.AudioFrame") -> int | None:
    """Which channel of PyAV's frame is the LFE, if one is: of three and more.

    FFmpeg takes 6 to 8 channels whose places are unknown for 5.1, 6.1 and 7.1.
    """
    names = [channel.name for channel in frame.layout.channels]
    if len(names) > 2 and "LFE" in names:
        return names.index("LFE")
    unknown = not any(name[:1] in "FBST" for name in names)
    return 3 if unknown and len(names) in WITH_LFE else None


def planar_float(frame: Any) -> np.ndarray:
    """Samples of a PyAV frame as (channels, S), in [-1, 1]."""
    kind, channels = np.dtype(SAMPLES[frame.format.packed.name]), frame.layout.nb_channels
    # of 8 channels and more, PyAV lists planes that are none: its to_ndarray crashes
    planes = frame.planes[: channels if frame.format.is_planar else 1]
    count = frame.samples * channels // len(planes)
    samples = np.stack([np.frombuffer(plane, kind, count) for plane in planes])
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)

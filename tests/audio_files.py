"""Audio files that are healthy, or wrong in one way, made by code."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 44_100


def music(seconds: float, *, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Make a tone, then a tone in noise: bits of a variable rate change with it."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(times))
    sound = 0.3 * np.sin(2 * np.pi * 220 * times) + 0.05 * noise * (times > seconds / 3)
    return sound.astype(np.float32)


def write(path: Path, sound: np.ndarray, rate: int = RATE, **options: object) -> Path:
    """Write in blocks: libvorbis crashes on one of a minute."""
    with soundfile.SoundFile(path, "w", rate, 1, **options) as file:
        for block in np.array_split(sound, max(1, len(sound) // rate)):
            file.write(block)
    return path


# --- mp3 ---


def mp3(path: Path, seconds: float, *, variable: bool = True, tag: bool = True) -> Path:
    """Write an mp3; without its tag, only its frames say how long it is."""
    mode = "VARIABLE" if variable else "CONSTANT"
    write(path, music(seconds), format="MP3", bitrate_mode=mode, compression_level=0.5)
    return path if tag else untagged(path)


def untagged(path: Path) -> Path:
    """Remove the first frame of an mp3, which holds the tag."""
    content = path.read_bytes()
    assert content[21:25] in (b"Xing", b"Info")
    path.write_bytes(content[144 * kbit(content) * 1000 // RATE :])
    return path


def with_hole(path: Path, seconds: float) -> Path:
    """Write an mp3 with zeros in its middle, where libsndfile stops."""
    content = mp3(path, seconds, variable=False, tag=False).read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(3000) + content[middle:])
    return path


def kbit(frame: bytes) -> int:
    """Bit rate of the first frame of an mp3, MPEG 1 layer III."""
    rates = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    return rates[frame[2] >> 4]


def id3(size: int = 1000) -> bytes:
    return b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


APE = b"APETAGEX" + struct.pack("<IIII8x", 2000, 40, 1, 0x80000000) + bytes(8) + b"x" * 40
ID3V1 = b"TAG" + b"a" * 125


# --- Ogg ---


def vorbis(path: Path, seconds: float, **options: int) -> Path:
    rate = options.get("rate", RATE)
    return write(path, music(seconds, **options), rate, format="OGG", subtype="VORBIS")


def opus(path: Path, seconds: float) -> Path:
    return write(path, music(seconds, rate=48_000), 48_000, format="OGG", subtype="OPUS")


def chained(path: Path, links: list[Path]) -> Path:
    path.write_bytes(b"".join(link.read_bytes() for link in links))
    return path


def without_end_flag(path: Path) -> Path:
    """Clear the flag of the last page that says that the stream ends; its checksum is made anew."""
    content = bytearray(path.read_bytes())
    page = content.rindex(b"OggS")
    content[page + 5] &= ~4
    _renew_checksum(content, page, len(content))
    path.write_bytes(content)
    return path


def with_negative_granule(path: Path) -> Path:
    """Set the granule position of the second page of sound to -104, as in a file of a game."""
    content = bytearray(path.read_bytes())
    pages = [at for at in range(len(content)) if content.startswith(b"OggS", at)]
    content[pages[3] + 6 : pages[3] + 14] = struct.pack("<q", -104)
    _renew_checksum(content, pages[3], pages[4])
    path.write_bytes(content)
    return path


def _renew_checksum(content: bytearray, page: int, end: int) -> None:
    content[page + 22 : page + 26] = bytes(4)
    content[page + 22 : page + 26] = struct.pack("<I", ogg_crc(content[page:end]))


def ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 2**31 else crc << 1) & (2**32 - 1)
    return crc


# --- FLAC, wav, AIFF ---


def flac(path: Path, seconds: float, *, stated: int | None = None) -> Path:
    """Write a FLAC whose header states a number of samples, such as 0 after a pipe."""
    write(path, music(seconds), format="FLAC")
    if stated is not None:
        content = bytearray(path.read_bytes())
        packed = int.from_bytes(content[18:26], "big") >> 36 << 36 | stated
        content[18:26] = packed.to_bytes(8, "big")
        path.write_bytes(content)
    return path


def wav(path: Path, seconds: float, *, stated: int | None = None, behind: bytes = b"") -> Path:
    """Write a wav whose data chunk states a number of bytes, and bytes behind it."""
    write(path, music(seconds), format="WAV", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    if stated is not None:
        content[40:44] = struct.pack("<I", stated)
        content[4:8] = struct.pack("<I", min(2**32 - 1, stated + 36))
    path.write_bytes(bytes(content) + behind)
    return path


def aiff(path: Path, seconds: float, *, stated: int) -> Path:
    """Write an AIFF whose sound chunk states a number of bytes."""
    write(path, music(seconds), format="AIFF", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    chunk = content.index(b"SSND")
    content[chunk + 4 : chunk + 8] = struct.pack(">I", stated)
    content[4:8] = struct.pack(">I", chunk + stated)
    path.write_bytes(content)
    return path


# --- what PyAV writes ---


def muxed(
    path: Path, seconds: float, *, codec: str, format: str, rate: int = RATE, layout: str = "mono"
) -> Path:
    """Write a file of any codec and container of FFmpeg; of several channels, one has the sound."""
    sound = music(seconds, rate=rate)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 96_000
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        for at in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, at : at + 1024], "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path


def film(path: Path, seconds: float, *, codec: str) -> Path:
    """Write sound beside one black picture of a video codec; the container is that of the name."""
    sound = music(seconds)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=1, width=64, height=64)
        video.pix_fmt = video.codec.video_formats[0].name
        audio = container.add_stream("pcm_f32le", rate=RATE, layout="mono")
        container.mux(video.encode(av.VideoFrame(64, 64, video.pix_fmt)))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], "flt", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(audio.encode(frame))
    return path


def cut(path: Path, share: float) -> Path:
    """Keep the first bytes of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    return path


Maker = Callable[[Path], Path]

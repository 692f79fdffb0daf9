"""From an audio file to its samples: libsndfile, then PyAV (extra ``formats``).

What was decoded is compared with what the file holds (:mod:`patchifier.containers`): a file never
gives less without a message. A header that is wrong is replaced, each link of an Ogg file is
decoded as a file of its own, and where libsndfile stops before the end, PyAV goes on.
"""

import codecs
import math
import re
import unicodedata
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from patchifier import channels, containers, sandbox
from patchifier.config import RequestError
from patchifier.containers import Stream, View
from patchifier.extras import how_to_install

if TYPE_CHECKING:
    import av

BLOCK_S = 10.0  # long enough for fast decoding, 3.5 MB of stereo float32 at 44.1 kHz
EXACT_SEEK = frozenset(
    {"WAV", "WAVEX", "AIFF", "AU", "FLAC", "W64", "RF64"}
)  # elsewhere a seek may be off by a frame: decode, then slice
CANCELLED = 0.01  # energy of the mono mix, of that of the channels: 20 dB less
SILENT = 10 ** (-70 / 20)  # peak of a silent file, of full scale
NO_LENGTH = 2**62  # libsndfile's number of samples where it does not know
HEAD_BYTES = 4096  # that tell a text
# formats of FFmpeg that read no other file
FORMATS = "wav,w64,aiff,au,caf,flac,ogg,mp3,aac,mov,mp4,m4a,asf,matroska,webm,ape,wv,tta"
CODECS = frozenset((
    "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "aac", "aac_latm", "alac", "flac",
    "vorbis", "libvorbis", "opus", "libopus", "speex", "libspeex", "ac3", "eac3", "wmav1",
    "wmav2", "wmapro", "wmalossless", "wmavoice", "ape", "wavpack", "tta", "adpcm_ms",
    "adpcm_ima_wav", "adpcm_ima_qt", "gsm", "gsm_ms",
))  # and all that begin with pcm_  # fmt: skip


class AudioError(RequestError):
    """A file that cannot be read as audio; the message names the file and the reason."""


@dataclass
class Decoding:
    """How a file was decoded. It is filled while its blocks are read.

    Attributes
    ----------
    decoder : str
        "libsndfile", "PyAV", or both with a plus sign.
    length_s : float
        Length of the audio that was given, in seconds.
    notes : list of str
        What was wrong with the file and did not matter.
    said : list of str
        Lines that its decoder printed in the main process.
    channel_energy, mono_energy : float
        Sums of squares: mean over the channels, and of their mean.
    peak : float
        Largest absolute sample of the mono mix.
    mix_lfe : bool
        Whether the channel of low-frequency effects is mixed like the others (``embed.mix_lfe``).
    """

    decoder: str = ""
    length_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    channel_energy: float = 0.0
    mono_energy: float = 0.0
    peak: float = 0.0
    mix_lfe: bool = False

    def mixed(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Count the energy of a block of several channels, and of their mean."""
        self.channel_energy += float(np.vdot(block, block)) * mono.size / block.size
        self.mono_energy += float(np.vdot(mono, mono))

    @property
    def level_note(self) -> str:
        """Say that the file is silent, or that its channels cancel each other out."""
        if self.mono_energy < CANCELLED * self.channel_energy:
            loss_db = 10 * math.log10(self.channel_energy / max(self.mono_energy, 1e-30))
            return f"its channels cancel each other out: their mean is {loss_db:.0f} dB quieter"
        if self.peak < SILENT:
            return "it is silent, so its vector says nothing about music"
        return ""

    def used(self, name: str) -> None:
        """Add a decoder."""
        if name not in self.decoder.split(" + "):
            self.decoder = f"{self.decoder} + {name}" if self.decoder else name


@dataclass
class _Part:
    """A part of a stream while it is decoded."""

    path: Path
    stream: Stream
    alone: bool  # whether the stream is the whole file
    start_s: float
    end_s: float | None
    how: Decoding
    samples: int = 0  # decoded, those before the start among them
    rate: int = 0
    stated_s: float = 0.0  # by the decoder
    offered_s: float = 0.0  # by libsndfile, where that is not all

    @property
    def decoded_s(self) -> float:
        return self.samples / self.rate if self.rate else 0.0

    @property
    def finished(self) -> bool:
        return self.end_s is not None and self.decoded_s >= self.end_s

    @property
    def short_s(self) -> float:
        """Seconds that were not decoded, if they are more than decoders may leave out."""
        if self.stream.length_s is None:
            return 0.0
        missing_s = self.stream.length_s - self.decoded_s
        return missing_s if missing_s > self.stream.tolerance_s + 1e-6 else 0.0


def mono_blocks(
    path: Path, start_s: float, end_s: float | None, how: Decoding
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the mix of the channels (S,) and its sample rate, a block at a time.

    Parameters
    ----------
    path : Path
        A regular file that is not empty.
    start_s, end_s : float
        Part of the file, in seconds.
    how : Decoding
        Is filled with the decoders that were used, and notes.

    Raises
    ------
    AudioError
        If the file is no audio, or gives less than it holds.
    """
    streams = containers.examine(path) or _unknown(path)
    _require_length(path, sum(stream.length_s or 0 for stream in streams), start_s, end_s)
    before_s = 0.0
    for number, stream in enumerate(streams, 1):
        last_s = None if end_s is None else end_s - before_s
        if last_s is not None and last_s <= 0:
            return
        length_s = stream.length_s or 0.0
        if start_s < before_s + length_s or number == len(streams):
            first_s = max(0.0, start_s - before_s)
            part = _Part(path, stream, len(streams) == 1, first_s, last_s, how)
            yield from _stream_blocks(part)
        before_s += length_s


def _unknown(path: Path) -> tuple[Stream, ...]:
    """Stream of a file whose audio cannot be counted; a text is refused."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # it may end in a character
    except UnicodeDecodeError:
        text = "\0"
    if all(unicodedata.category(letter) != "Cc" or letter in "\t\n\r\f" for letter in text):
        raise AudioError(f"{path}: not an audio file: it is text.")
    return (Stream(0, path.stat().st_size),)


def _require_length(path: Path, length_s: float, start_s: float, end_s: float | None) -> None:
    """Refuse a file that is longer than the limit before it is decoded."""
    wanted_s = min(length_s, length_s if end_s is None else end_s) - start_s
    if wanted_s > 3600 * sandbox.limits().length_h:
        raise too_long(path, wanted_s)


def too_long(path: Path | str, length_s: float) -> AudioError:
    """Make the error about a file, or a part of one, that is longer than the limit."""
    return AudioError(
        f"{path}: holds {length_s / 3600:.1f} h of audio, expected at most "
        f"{sandbox.limits().length_h:g} h: "
        f"cut it, name parts of it in a manifest, or set {sandbox.variable('length_h')}."
    )


def _stream_blocks(part: _Part) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of one stream: by libsndfile, and by PyAV what that leaves."""
    yield from _decoded(part)
    if part.stream.end_note and not part.finished:
        part.how.notes.append(part.stream.end_note)


def _decoded(part: _Part) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of one stream, as :func:`_stream_blocks`; the note about its end is left out."""
    sound, reason = _open(part)
    if sound is not None:
        part.how.used("libsndfile")
        with sound:
            reason = yield from _sndfile_blocks(sound, part)
            if part.finished:
                return
            _require_uncut(part, sound.extra_info)
        if not reason and part.short_s:
            reason = f"libsndfile stops after {part.decoded_s:.1f} s"
        if not reason:
            return
        part.how.notes.append(f"{reason}, PyAV reads the rest")
    elif part.offered_s:
        part.how.notes.append(f"{reason}, PyAV reads all of it")
    yield from _av_blocks(part, reason)
    if part.finished:
        return
    _require_uncut(part, "")
    if part.short_s:
        raise AudioError(
            f"{part.path}: damaged, it holds {part.stream.length_s:.1f} s and gives "
            f"{part.decoded_s:.1f} s ({reason})."
        )


def _mixed(block: np.ndarray, lfe: int | None, how: Decoding) -> np.ndarray:
    """Mix the channels of a block (S, channels) to one (S,), and count their energy."""
    if lfe is not None and not how.mix_lfe:
        block = np.delete(block, lfe, axis=1)
    mono = channels.mean(block)
    if block.shape[1] > 1:
        how.mixed(block, mono)
    return mono


def _require_rate(rate: int, path: Path) -> None:
    """Refuse a damaged header: at 1 Hz, a short file would be resampled to gigabytes."""
    if not 1_000 <= rate <= 768_000:
        raise AudioError(
            f"{path}: its header says {rate} Hz, expected a sample rate from 1,000 to 768,000 Hz."
        )


def _require_uncut(part: _Part, log: str) -> None:
    """Refuse a file that ends before its own header says it does."""
    held_s = part.decoded_s if part.stream.length_s is None else part.stream.length_s
    stated_s = part.stream.stated_s
    if stated_s is None:
        stated_s = part.stated_s if part.stream.length_s is None else 0.0
    # A header without an exact count may be a few frames off: 1 % and 0.5 s are let pass.
    short = stated_s - held_s > max(0.5, 0.01 * stated_s)
    if short or part.stream.cut or _data_cut_short(log):
        says = f"its header says {stated_s:.1f} s" if short else "its last block is incomplete"
        raise AudioError(f"{part.path}: truncated, ends after {held_s:.1f} s ({says}).")


# --- libsndfile ---


def _open(part: _Part) -> tuple[soundfile.SoundFile | None, str]:
    """Open a stream by libsndfile, as it is or with its header corrected, if that reads all of it.

    Else give the reason why not.
    """
    path, stream, reason = part.path, part.stream, ""
    tagged = stream.first > 0 and stream.length_s is None  # an ID3 tag before 16SV: it hangs
    # soundfile takes a file of that name for samples without a header
    by_name = part.alone and not tagged and path.suffix.lower() != ".raw"
    corrected = [View(path, stream)] if stream.head or not by_name else []
    for source in ([path] if by_name else []) + corrected:
        try:
            with sandbox.listen(part.how.said):
                sound = soundfile.SoundFile(source)
        except soundfile.LibsndfileError as error:
            reason = reason or _error_text(error)
            continue
        _require_rate(sound.samplerate, path)
        stated_s = sound.frames / sound.samplerate
        unknown = sound.frames >= NO_LENGTH and bool(stream.head) and source is path
        if not unknown and stated_s >= (stream.length_s or 0.0) - stream.tolerance_s - 1e-6:
            if source is not path and stream.note:
                part.how.notes.append(f"{stream.note}: read to the end")
            part.stated_s = 0.0 if sound.frames >= NO_LENGTH else stated_s
            return sound, ""
        part.offered_s = max(part.offered_s, stated_s)
        reason = f"libsndfile reads {stated_s:.1f} of {stream.length_s or 0:.1f} s"
        sound.close()
    return None, reason


def _error_text(error: soundfile.LibsndfileError) -> str:
    text: str = error.error_string.strip().rstrip(".")
    if "malloc" in text:
        raise MemoryError(text)
    return "not an audio file" if text.startswith("File does not exist") else text  # it does


def _sndfile_blocks(
    sound: soundfile.SoundFile, part: _Part
) -> Generator[tuple[np.ndarray, int], None, str]:
    """Blocks that libsndfile decodes; returns why it stopped before the end, if it did."""
    rate, lfe = sound.samplerate, channels.lfe_of_sndfile(sound)
    part.rate = rate
    first = round(part.start_s * rate)
    last = None if part.end_s is None else round(part.end_s * rate)
    if sound.format in EXACT_SEEK and 0 < first < sound.frames:
        part.samples = sound.seek(first)
    while last is None or part.samples < last:
        try:
            with sandbox.listen(part.how.said):
                block = sound.read(int(BLOCK_S * rate), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            return f"libsndfile stops after {part.decoded_s:.1f} s ({_error_text(error)})"
        if not len(block):
            break
        at = part.samples
        kept = block[max(0, first - at) : None if last is None else last - at]
        part.samples += len(block)
        if len(kept):
            yield _mixed(kept, lfe, part.how), rate
    return ""


def _data_cut_short(log: str) -> bool:
    """Whether libsndfile's log says that less is there than the header states.

    Of the data (wav, aiff, au, caf) or of the file (w64, rf64).
    """
    chunk = re.search(
        r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE
    )
    if not chunk:
        return False
    promised, present = int(chunk[1]), int(chunk[2])
    streamed = (
        promised >= 2**31 - 2**16
    )  # a pipe could not know its length and wrote the largest number
    return not streamed and promised - present > 0.01 * promised


# --- PyAV ---


def _av_blocks(part: _Part, reason: str) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks that PyAV decodes, from where libsndfile stopped."""
    try:
        import av
    except ImportError:
        remedy = how_to_install("av")
        raise AudioError(f"{part.path}: {_without_av(part, reason)}: {remedy}.") from None
    part.how.used("PyAV")
    given_s, part.samples = part.decoded_s, 0
    try:
        with _open_av(part) as container:
            yield from _frames_av(container, part, given_s)
    except (AudioError, MemoryError):
        raise
    except av.error.FFmpegError as error:
        fault = "not an audio file that libsndfile or FFmpeg can decode"
        if part.samples:
            fault = f"damaged or cut off after {part.decoded_s:.1f} s"
        raise AudioError(f"{part.path}: {fault} ({error.strerror}).") from error
    except Exception as error:  # of a decoder that meets nonsense: it costs its file and no more
        raise AudioError(
            f"{part.path}: its decoder fails ({type(error).__name__}: {error})."
        ) from error


def _without_av(part: _Part, reason: str) -> str:
    """Say what libsndfile cannot read, and for what the extra is."""
    read_s, length_s = max(part.offered_s, part.decoded_s), part.stream.length_s
    if read_s or part.rate:  # libsndfile opened it
        all_s = "s" if length_s is None else f"of its {length_s:.1f} s"
        return f"only {read_s:.1f} {all_s} can be read by libsndfile. To read it"
    why = "" if reason == "not an audio file" else f" ({reason})"
    if length_s is not None:
        return f"cannot be read by libsndfile{why}. To read it"
    return f"not an audio file that libsndfile knows{why}. For m4a, wma and other formats"


def _open_av(part: _Part) -> "av.container.InputContainer":
    """Open a stream as one of :data:`FORMATS` with a codec of :data:`CODECS`.

    Without a list of codecs, FFmpeg runs the decoder of every stream to open a file.
    """
    import av

    source: Any = f"file:{part.path}" if part.alone else View(part.path, part.stream)
    codecs = CODECS | {name for name in av.codecs_available if name.startswith("pcm_")}
    options = {"format_whitelist": FORMATS, "codec_whitelist": ",".join(codecs)}
    container = av.open(source, options=options, metadata_errors="ignore")
    kinds = [stream.codec_context.name for stream in container.streams.audio]
    fault = ""
    if not kinds:
        fault = "holds no audio stream."
    elif kinds[0] not in codecs:
        fault = f"its codec is {kinds[0]}, expected one of a music file such as mp3, aac or opus."
    if fault:
        container.close()
        raise AudioError(f"{part.path}: {fault}")
    return container


def _frames_av(
    container: "av.container.InputContainer", part: _Part, given_s: float
) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of an opened file, without the first `given_s`.

    What cannot be decoded is left out if the length was counted: then it is known what is missing.
    """
    import av

    stream, bad = container.streams.audio[0], 0
    start_s = max(part.start_s, given_s)
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if part.stream.length_s is None:
                raise
            bad += 1
            continue
        for frame in frames:
            if part.finished:
                return
            rate = part.rate = frame.sample_rate
            _require_rate(rate, part.path)
            samples = channels.planar_float(frame)
            first = max(0, round(start_s * rate) - part.samples)
            last = None if part.end_s is None else round(part.end_s * rate) - part.samples
            part.samples += samples.shape[1]
            kept = samples[:, first:last]
            if kept.size:
                yield _mixed(kept.T, channels.lfe_of_frame(frame), part.how), rate
    if bad:
        part.how.notes.append(f"{bad} packets are damaged and left out")
    part.stated_s = _stated_av(container, part.rate)


def _stated_av(container: "av.container.InputContainer", rate: int) -> float:
    """Length that a container states, in seconds."""
    import av

    stream = container.streams.audio[0]
    counted = (
        stream.frames if stream.codec_context.name.startswith("pcm_") else 0
    )  # a frame of PCM is a sample (CAF's header)
    return max((container.duration or 0) / av.time_base, counted / rate if rate else 0.0)

"""How long files are by FFmpeg and by us: codec, container, stated length, tags, cut at three places.

    python benchmarks/decoded_length.py [--seconds 8]

Makes its own files in a temporary folder. FFmpeg is the command `ffmpeg`, if there is one, else PyAV, which decodes with the
same libraries; its "damaged" packets are passed over. Each row says how long the music was before it was encoded, what FFmpeg
decodes of the file, what `audio.blocks` gives, and which decoder gave it or why the file is refused. The last line counts the
files of which less is given than FFmpeg decodes, without a message: 0 is right.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import keep

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import audio_files as made

from patchifier import audio

SHORT_S = 0.1  # decoders differ by a few frames at the ends
CUTS = (1.0, 0.25, 0.5, 0.83)
KINDS = {
    "mp3, variable": (".mp3", made.mp3),
    "mp3, variable, no tag": (".mp3", partial(made.mp3, tag=False)),
    "mp3, constant": (".mp3", partial(made.mp3, variable=False)),
    "mp3, constant, no tag": (".mp3", partial(made.mp3, variable=False, tag=False)),
    "mp3 with a hole": (".mp3", made.with_hole),
    "mp2": (".mp2", partial(made.muxed, codec="mp2", format="mp2")),
    "vorbis in ogg": (".ogg", made.vorbis),
    "opus in ogg": (".opus", made.opus),
    "opus in ogg, no end flag": (
        ".opus",
        lambda path, s: made.without_end_flag(made.opus(path, s)),
    ),
    "opus in webm": (".webm", partial(made.muxed, codec="libopus", format="webm", rate=48_000)),
    "flac in ogg": (".oga", partial(made.muxed, codec="flac", format="ogg")),
    "flac": (".flac", made.flac),
    "flac, states 0": (".flac", partial(made.flac, stated=0)),
    "wav": (".wav", made.wav),
    "wav, states 0": (".wav", partial(made.wav, stated=0)),
    "wav, states 2^32 - 1": (".wav", partial(made.wav, stated=2**32 - 1)),
    "wav, states too little": (".wav", partial(made.wav, stated=1000)),
    "aiff, states 8 bytes": (".aiff", partial(made.aiff, stated=8)),
    "aac in adts": (".aac", partial(made.muxed, codec="aac", format="adts")),
    "aac in m4a": (".m4a", partial(made.muxed, codec="aac", format="mp4")),
    "alac in m4a": (".m4a", partial(made.muxed, codec="alac", format="mp4")),
    "wma": (".wma", partial(made.muxed, codec="wmav2", format="asf")),
    "wavpack": (".wv", partial(made.muxed, codec="wavpack", format="wv")),
    "tta": (".tta", partial(made.muxed, codec="tta", format="tta")),
}
TAGS = {
    "": (b"", b""),
    "ID3 before": (made.id3(), b""),
    "ID3 and zeros before": (made.id3() + bytes(3000), b""),
    "APE and ID3 behind": (b"", made.APE + made.ID3V1),
}
TAGGED = ("mp3, variable", "mp3, variable, no tag", "flac", "wav")


def files(folder, seconds):
    """Yield the name of a case, its file, and the length of its music."""
    for name, (suffix, make) in KINDS.items():
        path = make(folder / f"whole{suffix}", seconds)
        content = path.read_bytes()
        for tags, (before, behind) in TAGS.items():
            if tags and name not in TAGGED:
                continue
            for share in CUTS if not tags else (1.0,):
                cut = content[: round(share * len(content))]
                path.write_bytes(before + cut + behind)
                case = ", ".join(
                    filter(None, (name, tags, f"cut at {share:.0%}" if share < 1 else ""))
                )
                yield case, path, seconds
    for name, make, suffix in (("vorbis", made.vorbis, ".ogg"), ("opus", made.opus, ".opus")):
        links = [make(folder / f"{number}{suffix}", seconds / 2) for number in range(3)]
        yield f"{name}, three links", made.chained(folder / f"chain{suffix}", links), 1.5 * seconds


def by_ffmpeg(path):
    """Seconds that FFmpeg decodes, whatever is damaged."""
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "quiet", "-i", str(path), "-f", "s16le", "-ac", "1"]
        decoded = subprocess.run([*command, "-ar", "48000", "-"], stdout=subprocess.PIPE).stdout
        return len(decoded) / 2 / 48_000
    import av

    seconds = 0.0
    try:
        with av.open(str(path)) as container:
            for packet in container.demux(audio=0):
                try:
                    seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
                except av.error.InvalidDataError:
                    continue
    except av.error.FFmpegError:
        pass
    return seconds


def by_us(path):
    """Seconds that we give, and the decoder; or None and the reason."""
    how = audio.Decoding()
    try:
        for _ in audio.blocks(path, how=how):
            pass
    except audio.AudioError as error:
        return None, str(error).removeprefix(f"{path}: ")
    return how.length_s, "; ".join([how.decoder, *how.notes])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    flags = parser.parse_args()
    rows, silent = [], 0
    print(f"{'':52}{'made, s':>9}{'FFmpeg':>9}{'ours':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for case, path, true_s in files(Path(folder), flags.seconds):
            theirs_s, (ours_s, why) = by_ffmpeg(path), by_us(path)
            short = ours_s is not None and ours_s < theirs_s - SHORT_S
            silent += short
            given = "refused" if ours_s is None else f"{ours_s:.3f}"
            mark = " SHORT" if short else ""
            print(f"{case:<52}{true_s:>9.3f}{theirs_s:>9.3f}{given:>9}  {why}{mark}", flush=True)
            row = {"made_s": true_s, "ffmpeg_s": theirs_s, "ours_s": ours_s, "decoder": why}
            rows.append({"case": case, **row})
    print(f"{silent} of {len(rows)} files give less than FFmpeg decodes, without a message")
    keep("decoded_length", {"rows": rows, "silent": silent, "seconds": flags.seconds})


if __name__ == "__main__":
    main()

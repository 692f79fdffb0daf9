"""MagnaTagATune: 25,863 clips of 29 s with 188 tags, the paper's pre-training set.

=========  =========================================================================================
size       25,863 clips listed, 25,860 usable, 209 h; 5,405 songs, 446 albums, 230 artists; 3.0 GB
audio      MPEG-2 Layer III, 16 kHz, mono, 32 kbps; every usable clip decodes to 29.124 s (465,984
           samples)
origin     Magnatune's catalogue, tagged by players of the game TagATune (2009);
           https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset
licence    CC BY-NC-SA 3.0
citation   Law, West, Mandel, Bay, Downie: Evaluation of algorithms using games: the case of music
           tagging. ISMIR 2009
files      clip_info_final.csv, annotations_final.csv (tab-separated, quoted or not) and the folders
           0 to f, in the root, in mp3/ or in audio/
=========  =========================================================================================

Variants. The split is by folder: 0-b train, c valid, d-f test.

* For pre-training, without labels and without a split. The paper says "16k clips" and gives no
  rule; none of the usual subsets has 16,000. ``paper16k``, the default, is the first 16,000 usable
  clips of folders 0-c in the order of sha256("paper16k/ID"), ID being the clip_id in decimal
  without padding (the digest compared as bytes). It uses no label and no clip of the test folders.
  ``top50-trainval`` (16,776; this one uses the labels), ``train`` (18,706) and ``all`` (25,860,
  test folders included: not to be followed by a test on them) are the other readings.
* For tagging. ``tags50``: all usable clips, those without a tag being negatives, as Pons and
  JukeMIR count (18,706 / 1,825 / 5,329); ``tags50-tagged``: clips with at least one of the 50 tags
  (15,247 / 1,529 / 4,332; Lee's and Won's lists have 3 fewer in train, for a reason that the tables
  do not show); ``tags188``: all clips, all tags.

The group of a clip is its album (the last part of the album's address), not its song: the published
folders are by album, an album never spans two of them, and clips of one album share artist,
recording and mastering, so that they are not independent in an interval either. Artists do span the
folders (56 of 230): the published split leaks them.

Traps
-----
* Three clips are empty files in every copy, all in train; they are left out here.
* 4,221 usable clips have no tag at all, 4,752 none of the 50.
* Tags are raw: synonyms (beat and beats, vocal, vocals and voice, "no voice" and "no vocals", ...)
  are different tags, as in every published figure. The order of the 50 has ties, so it is a list
  (``published/mtat_tags.csv``), not a sort.
* The sound ends near 7.2 kHz, whatever it is resampled to; lengths estimated from mp3 headers are
  wrong.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from patchifier.config import RequestError
from patchifier.datasets import Clip, Dataset
from patchifier.datasets.sheet import Archive, Remote, Sheet, Variant, fullest, packaged, read_table
from patchifier.tasks import Task

_TAGS = packaged("mtat_tags.csv")
TAGS188 = tuple(row["tag"] for row in _TAGS)  # in the order of the columns
_TOP50 = {int(row["top50_index"]): row["tag"] for row in _TAGS if row["top50_index"]}
TAGS50 = tuple(_TOP50[index] for index in sorted(_TOP50))
SPLIT_OF = dict.fromkeys("0123456789ab", "train") | {"c": "valid"} | dict.fromkeys("def", "test")
PAPER_CLIPS = 16_000
KNOWN_BAD = {
    "6/norine_braun-now_and_zen-08-gently-117-146.mp3": "empty in every copy: clip 35644, train",
    "8/jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233.mp3": (
        "empty in every copy: clip 55753, train"
    ),
    "9/american_baroque-dances_and_suites_of_rameau_and_couperin-25-"
    "le_petit_rien_xiveme_ordre_couperin-88-117.mp3": "empty in every copy: clip 57881, train",
}


def read(root: Path, variant: str) -> Dataset:
    """List the clips, whether their files exist or not; refuse other tables than the published."""
    clips = list(_clips(root))
    if variant in SELECTIONS:
        chosen = SELECTIONS[variant](clips)
        return Dataset("mtat", tuple(_clip(clip) for clip in chosen))
    names = TAGS188 if variant == "tags188" else TAGS50
    if variant == "tags50-tagged":
        clips = [clip for clip in clips if _tags(clip, TAGS50)]
    return Dataset("mtat", tuple(_clip(clip, names) for clip in clips), Task("many-of", names))


def _clips(root: Path) -> Iterator[Clip]:
    """Yield every usable clip, with its split and all of its tags."""
    columns = ("clip_id", *TAGS188, "mp3_path")
    annotated = {
        row["clip_id"]: (row["mp3_path"], [tag for tag in TAGS188 if row[tag] == "1"])
        for row in read_table(root / "annotations_final.csv", columns, delimiter="\t")
    }
    base = fullest([root, root / "mp3", root / "audio"], list(SPLIT_OF))
    path = root / "clip_info_final.csv"
    for row in read_table(
        path, ("clip_id", "title", "artist", "album", "url", "mp3_path"), delimiter="\t"
    ):
        name = row["mp3_path"]
        if not name or name in KNOWN_BAD:
            continue
        if name.split("/")[0] not in SPLIT_OF:
            raise RequestError(
                f"{path}: clip {row['clip_id']} has the path {name!r}, expected one that starts "
                "with a folder 0 to f."
            )
        path_there, present = annotated.get(row["clip_id"], ("", []))
        if path_there != name:
            raise RequestError(
                f"annotations_final.csv has {path_there or 'no path'!r} for clip {row['clip_id']}, "
                f"expected {name!r} as in {path.name}."
            )
        yield Clip(
            id=row["clip_id"],
            path=str(base / name),
            split=SPLIT_OF[name[0]],
            group=row["url"].rstrip("/").rsplit("/", 1)[-1],
            target=present,
            info={key: row[key] for key in ("artist", "title", "album") if row[key]},
        )


def _tags(clip: Clip, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in clip.target]


def _clip(clip: Clip, names: tuple[str, ...] = ()) -> Clip:
    """Return the clip with the tags in `names`.

    Without names, for pre-training, it has neither target nor split.
    """
    if not names:
        return replace(clip, split=None, target=None)
    return replace(clip, target=_tags(clip, names))


def _paper16k(clips: list[Clip]) -> list[Clip]:
    """Choose the first 16,000 by a hash, of the folders that are not for tests.

    In the order of the table.
    """
    candidates = [clip for clip in clips if clip.split != "test"]
    hashed = {hashlib.sha256(f"paper16k/{c.id}".encode()).digest(): c.id for c in candidates}
    chosen = {hashed[digest] for digest in sorted(hashed)[:PAPER_CLIPS]}
    return [clip for clip in candidates if clip.id in chosen]


SELECTIONS: dict[str, Callable[[list[Clip]], list[Clip]]] = {
    "paper16k": _paper16k,
    "top50-trainval": lambda clips: [
        clip for clip in clips if clip.split != "test" and _tags(clip, TAGS50)
    ],
    "train": lambda clips: [clip for clip in clips if clip.split == "train"],
    "all": lambda clips: clips,
}

_HOST = "https://mirg.city.ac.uk/datasets/magnatagatune"
_OLD_HOST = "http://mi.soi.city.ac.uk/datasets/magnatagatune"
_MIRROR = "https://huggingface.co/datasets/confit/magnatagatune/resolve/main"


_USABLE = {"train": 18_706, "valid": 1_825, "test": 5_329}
_TAGGED = {"train": 15_247, "valid": 1_529, "test": 4_332}
_TABLES = {
    "clip_info_final.csv": "cb6108a10d3a91f0bfd7d2fbec2382559d15f20c8d28093f14e12162a47a3e78",
    "annotations_final.csv": "99b94e95825d4fa576386a5367b9c96e0ec636e9f9c240aceb492f4728f68c3c",
}
_PARTS = {
    "mp3.zip.001": "f857fe185968773058cc71662c2ef5d8f2d4b7338e3c122cfd52f82dcb9760b9",
    "mp3.zip.002": "fc2e1ec441755556ed1398b1808f1b08b6034372f8bc27394510c0c58cdb52ce",
    "mp3.zip.003": "83a689824c17e82f6eb81cdbc4e4ca239a4cfc1fb41f1a5c80b861caec90450f",
}
_SIZES_B = {"mp3.zip.001": 1_100_000_000, "mp3.zip.002": 1_100_000_000, "mp3.zip.003": 772_769_864}


def _remote(name: str, sha256: str, *hosts: str) -> Remote:
    urls = tuple(f"{host}/{name}" for host in (_HOST, _OLD_HOST, *hosts))
    return Remote(name, urls, sha256, _SIZES_B.get(name))


SHEET = Sheet(
    name="mtat",
    title="MagnaTagATune",
    home="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
    licence="CC BY-NC-SA 3.0",
    citation="Law, West, Mandel, Bay, Downie: Evaluation of algorithms using games: the case of "
    "music tagging. ISMIR 2009",
    read=read,
    variants={
        "paper16k": Variant(
            "pre-training: 16,000 clips of folders 0-c by a fixed hash, label-free", {"": 16_000}
        ),
        "top50-trainval": Variant(
            "pre-training: clips of folders 0-c with a top-50 tag", {"": 16_776}
        ),
        "train": Variant("pre-training: folders 0-b", {"": 18_706}),
        "all": Variant("pre-training: every usable clip, test folders included", {"": 25_860}),
        "tags50": Variant("tagging, top 50; untagged clips are negatives", _USABLE),
        "tags50-tagged": Variant("tagging, top 50; clips with at least one of them", _TAGGED),
        "tags188": Variant("tagging, all 188; untagged clips are negatives", _USABLE),
    },
    remotes=(
        *(_remote(name, sha256, _MIRROR) for name, sha256 in _TABLES.items()),
        *(_remote(name, sha256) for name, sha256 in _PARTS.items()),
    ),
    archives=(Archive("mp3.zip", parts=tuple(_PARTS)),),
    known_bad=KNOWN_BAD,
    steps=(
        f"If the host does not answer: {_MIRROR}/mp3.zip is the three parts already joined "
        "(2,972,769,864 bytes, md5 f12add0eb4cd6c2a3ab7e4afaf7b7467); unpack it so that the "
        "folders 0 to f lie in the root, and put the two csv files beside them."
    ),
)

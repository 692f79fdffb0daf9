"""Check the texts for plain language: a row for each page.

    python tools/prose.py docs README.md

Sentences are those of paragraphs and lists. Code, tables and headings are left out. A word is
unknown if it is not in pyspellchecker's English list and not in tools/words.txt. British spelling.
"""

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = ROOT / "tools" / "words.txt"
AVOID = (
    "asked",
    "heard",
    "said of",
    "stands there",
    "utilise",
    "utilize",
    "leverage",
    "in order to",
    "simply",
    "obviously",
    "of course",
    "seamless",
    "seamlessly",
    "powerful",
    "state-of-the-art",
    "cutting-edge",
    "a plethora",
    "delve",
    "very",
    "quite",
    "hence",
    "thus",
    "whilst",
    "thereof",
    "therein",
    "respectively",
)
BE = r"(?:am|is|are|was|were|be|been|being)"
IRREGULAR = (
    "made read written drawn cut kept found given taken known shown left lost built chosen told "
    "sent held seen run put set split learnt meant spent stopped sold bought caught brought"
)
PASSIVE = re.compile(
    rf"\b{BE}\s+(?:not\s+|never\s+|then\s+|also\s+|\w+ly\s+)*(?:\w\w+ed|{'|'.join(IRREGULAR.split())})\b"
)
BLOCK = re.compile(r"^(```|~~~|:::).*?^\1`*:*\s*$", re.MULTILINE | re.DOTALL)
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|et al|vs|Fig|cf|approx)\.$")


@dataclass(frozen=True)
class Page:
    """What was counted on a page.

    Parameters
    ----------
    name : str
    sentences : int
    mean, worst : float
        Length of sentences in words.
    passive : float
        Share of sentences with a passive verb.
    avoid : tuple of str
        Words of the list that is not to be used.
    unknown : tuple of str
        Words that are in no list.
    longest : str
        The longest sentence.
    """

    name: str
    sentences: int
    mean: float
    worst: int
    passive: float
    avoid: tuple[str, ...]
    unknown: tuple[str, ...]
    longest: str


def plain(text: str) -> str:
    """Return the text of a Markdown page: paragraphs apart by an empty line, code as the word X."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^:{3,}.*$", "", text, flags=re.MULTILINE)
    text = BLOCK.sub("\n", text)
    text = re.sub(r"\{[\w:]+\}`[^`]*`", "X", text)
    text = re.sub(r"``[^`]+``|`[^`]+`", "X", text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"https?://\S+", "X", text)
    lines = []
    for line in text.splitlines():
        item = re.match(r"\s*(?:[-*]|\d+\.)\s+", line)
        skipped = re.match(r"(\||#|    \S|\t)", line) and not item
        lines.append("" if skipped else f"\n{line[item.end() :]}" if item else line)
    return re.sub(r"[*_]{1,2}(?=\S)|(?<=\S)\*{1,2}", "", "\n".join(lines))


def sentences(text: str) -> list[str]:
    """Sentences of a plain text; a paragraph ends one."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        parts = re.split(r"(?<=[.!?])[\"”)]?\s+(?=[A-Z\"“(\d])", " ".join(paragraph.split()))
        for part in parts:
            if found and ABBREVIATION.search(found[-1]):
                found[-1] += f" {part}"
            else:
                found.append(part)
    return [sentence for sentence in found if len(words_of(sentence)) > 1]


def words_of(sentence: str) -> list[str]:
    """Words of a sentence; a number is one."""
    return re.findall(r"\w[\w’'.,-]*", sentence)


def check(name: str, text: str) -> Page:
    """Count sentences, their length, passives and words."""
    text = plain(text)
    found = sentences(text) or [""]
    lengths = [len(words_of(sentence)) for sentence in found]
    low = text.lower()
    avoid = [word for word in AVOID if re.search(rf"\b{word}\b", low)]
    return Page(
        name,
        len(found),
        sum(lengths) / len(found),
        max(lengths),
        sum(bool(PASSIVE.search(sentence)) for sentence in found) / len(found),
        tuple(avoid),
        tuple(sorted(unknown(text))),
        found[lengths.index(max(lengths))],
    )


def unknown(text: str) -> set[str]:
    """Words that are neither English nor in words.txt; names with capitals inside are left out."""
    known = set(WORDS.read_text(encoding="utf-8").split())
    words = {re.sub(r"['’]s?$", "", word.rstrip(".,-")) for word in words_of(text)}
    parts = {part for word in words for part in word.split("-") if part}
    plain_words = {part for part in parts if part.isalpha() and part[1:].islower() and part != "Xs"}
    rest = {word for word in plain_words if word not in known and word.lower() not in known}
    return {word for word in rest if word.lower() not in english()}


@functools.cache
def english() -> frozenset[str]:
    """English words, lower case."""
    from spellchecker import SpellChecker

    return frozenset(SpellChecker().word_frequency.words())


def pages(places: Iterable[str]) -> list[Page]:
    """Check files, and all Markdown below folders."""
    files = []
    for place in map(Path, places):
        files += sorted(place.rglob("*.md")) if place.is_dir() else [place]
    files = [file for file in files if "made" not in file.parts]
    return [check(file.as_posix(), file.read_text(encoding="utf-8")) for file in files]


def main(places: list[str]) -> None:
    """Print the table, the worst sentence of each page, and words to look at."""
    found = pages(places)
    print(f"{'page':<46}{'sentences':>10}{'mean':>6}{'worst':>7}{'passive':>9}  words to avoid")
    for page in found:
        row = f"{page.name:<46}{page.sentences:>10}{page.mean:>6.1f}{page.worst:>7}"
        print(f"{row}{100 * page.passive:>7.0f} %  {', '.join(page.avoid)}")
    for page in found:
        if page.unknown:
            print(f"{page.name}: unknown: {', '.join(page.unknown)}")
    for page in sorted(found, key=lambda page: -page.worst)[:10]:
        print(f"{page.name}, {page.worst} words: {page.longest}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["docs", "README.md"])

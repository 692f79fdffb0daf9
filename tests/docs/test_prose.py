"""The texts are in plain language: bounds on sentences, words and spelling of every page."""

import pytest
from tools import prose

from tests import ROOT

FILES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [file.relative_to(ROOT).as_posix() for file in FILES if "made" not in file.parts]
FEW = 5  # sentences, of which a mean says little


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_plain(name):
    page = prose.check(name, (ROOT / name).read_text(encoding="utf-8"))
    assert page.worst <= (46 if "experiments" in name else 40), page.longest
    assert page.sentences < FEW or page.mean <= (20 if "experiments" in name else 16)
    assert page.sentences < FEW or page.passive <= 0.45
    assert page.avoid == ()
    assert page.unknown == (), "mend the word, or add it to tools/words.txt"


def test_sentences_words_and_passives_are_counted():
    text = "# Head\n\nA file is read by `code` e.g. here. It is quite good.\n\n- Wrods, see [a page](x.md)\n\n"
    page = prose.check("page", f"{text}| a | table |\n\n    code\n")
    assert page.sentences == 3
    assert page.worst == 8
    assert page.passive == pytest.approx(1 / 3)
    assert page.avoid == ("quite",)
    assert page.unknown == ("Wrods",)
    assert page.longest.startswith("A file is read by X")

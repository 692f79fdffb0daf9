"""docs/guarantees.md names what there is."""

import json
import re

from tests.torture.__main__ import PAGE, RECORD, ROOT
from tests.torture._page import FAULTS, PROMISES, page


def test_every_test_that_the_page_names_exists():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"^ *def (test_\w+)", source, re.MULTILINE))
    assert {name for names in FAULTS.values() for name in names.split()} - tests == set()
    files = {name for _, names in PROMISES.values() for name in names.split()}
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_every_guarantee_of_the_design_has_its_promise():
    section = (ROOT / "DESIGN.md").read_text("utf-8").split("\n## 7")[1].split("\n## ")[0]
    numbers = re.findall(r"^(\d+)\. \*\*", section, re.MULTILINE)
    assert list(PROMISES) == [int(number) for number in numbers]


def test_the_page_is_what_the_last_results_make():
    assert PAGE.read_text("utf-8") == page(json.loads(RECORD.read_text("utf-8")))

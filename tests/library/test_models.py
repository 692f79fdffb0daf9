"""Which model made a table, in words."""

import json
import re
import shutil

import numpy as np
import pytest

import patchifier
from patchifier import weights
from patchifier.config import RequestError
from patchifier.library import models, search
from patchifier.library.table import require_same
from tests.library.vectors import random_vectors

UNKNOWN = "0123456789abcdef"


@pytest.fixture
def identities(bundled):
    """Identities of two small models that stand for those of the package."""
    return {name: patchifier.load(name).identity for name in weights.names()}


@pytest.fixture
def older(bundled):
    """Identity of a model that an older version had under the name of the default one."""
    (bundled / weights.OLDER).write_text(json.dumps({UNKNOWN: weights.DEFAULT}))
    return UNKNOWN


def test_every_model_that_was_ever_in_the_package_is_known():
    """Of versions 0.1 and 0.2; release.py adds what it replaces to older.json."""
    now, older = {patchifier.load(name).identity for name in weights.names()}, weights.older()
    assert {"c647fa920bdb7019", "ed9130f9869c647e", "80633ad3d1abda49"} <= now | older.keys()
    assert not now & older.keys()
    assert set(older.values()) <= set(weights.names())
    assert all(re.fullmatch("[0-9a-f]{16}", identity) for identity in older)


def test_models_are_called_by_their_names(identities, older):
    for name, identity in identities.items():
        assert models.called(identity) == name
        assert models.called(f"{identity} of patches") == f"{name} of patches"
    assert models.called(older) == "the patchifier-base of another version"
    assert models.called("fedcba9876543210") == "fedcba9876543210"
    assert models.called("model-a") == "model-a"


def test_a_model_that_was_replaced_is_not_called_by_its_name_any_more(identities, bundled):
    base, paper = (identities[name] for name in (weights.DEFAULT, weights.PAPER))
    assert models.called(base) == weights.DEFAULT
    shutil.rmtree(bundled / weights.DEFAULT)
    shutil.copytree(bundled / weights.PAPER, bundled / weights.DEFAULT)
    assert models.called(base) == base
    assert models.called(paper) == weights.DEFAULT


def test_what_to_do_depends_on_who_made_the_table(identities, older):
    said = models.how_to_match(identities[weights.PAPER], "x.parquet")
    assert said == "The table was made by patchifier-paper: add --model patchifier-paper."
    said = models.how_to_match(older, "x.parquet")
    assert said.startswith("x.parquet was made by the patchifier-base of another version")
    assert "'patchifier embed SOURCES --out NEW.parquet'" in said
    assert "folder with --model" in models.how_to_match("fedcba9876543210", "x.parquet")


def test_a_query_of_another_size_is_refused_with_both_models(write):
    sizes = {name: patchifier.load(name).size for name in weights.names()}
    base = patchifier.load()
    table = write(random_vectors(2, base.size), "ab", identity=base.identity)
    with pytest.raises(RequestError, match="vector size") as refused:
        search.load(table).similar(np.ones(sizes[weights.PAPER]))
    assert f"patchifier-base made the {base.size} numbers" in str(refused.value)
    assert f"patchifier-paper makes vectors of {sizes[weights.PAPER]}" in str(refused.value)


def test_tables_of_two_models_are_refused_with_their_names(identities, tmp_path):
    facts = {"pooling": "mean", "layers": [], "window_s": None, "hop_s": None, "patches": False}
    base, paper = ({**facts, "model": one, "size": 2} for one in identities.values())
    with pytest.raises(RequestError, match="model is 'patchifier-paper'") as refused:
        require_same(paper, base, tmp_path / "x.parquet")
    assert "not 'patchifier-base'" in str(refused.value)
    assert "add --model patchifier-paper. Or choose another --out" in str(refused.value)
    with pytest.raises(RequestError, match=r"hop_s is 2, not None. Use those, or choose"):
        require_same({**base, "hop_s": 2}, base, tmp_path / "x.parquet")

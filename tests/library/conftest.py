"""Tables of chosen vectors, opened as a table and as an index."""

import pytest

from patchifier.library import search
from tests.library import vectors


@pytest.fixture
def write(tmp_path):
    """Write a table of vectors, and give its path."""

    def run(*given, **options):
        return vectors.write_table(tmp_path, *given, **options)

    return run


@pytest.fixture
def place(tmp_path):
    return tmp_path / "an index"


@pytest.fixture
def build(place):
    """Make an index of a table."""
    return lambda table, **options: search.Index.build(table, place, **options)


@pytest.fixture(params=["table", "index"])
def opened(request, build):
    """Open a Parquet file in both ways."""
    return search.Table.open if request.param == "table" else build

"""Recall and latency of approximate search against exact, on vectors of a real distribution.

    python benchmarks/search.py --model runs/demo/model             embeds the bundled clips, 2 s at a time
    python benchmarks/search.py --table library.parquet             or starts from a table that 'patchifier embed' wrote
    python benchmarks/search.py --model ... --sizes 1000 100000 1000000      a million rows of 512 floats need 10 GB of memory and of disk

The large tables are drawn from a Gaussian mixture fitted to the given vectors: one component for each, of a common covariance
that is theirs, scaled down by Scott's rule for as many dimensions as their spectrum has in effect (participation ratio).
Queries are further draws. Prints, for each size: seconds to build, recall at 10 against exact search, and the median and 95th
percentile of milliseconds a query takes, for: numpy in memory, LanceDB comparing every row, LanceDB approximately.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchifier import datasets, embed, search
from patchifier.runs import machine
from patchifier.search.rows import FACTS, TYPES

QUERIES, K = 200, 10


def demo_vectors(model):
    embedder = embed.load(model)
    return np.concatenate([embedder.embed_windows(clip.path, window_s=2.0, hop_s=1.0).vectors for clip in datasets.load("demo").clips])


class Mixture:
    """A Gaussian around every vector given."""

    def __init__(self, vectors, generator):
        self.vectors, self.generator = vectors.astype(np.float32), generator
        self.centred = (self.vectors - self.vectors.mean(0)) / np.float32(np.sqrt(len(vectors)))
        spectrum = np.linalg.svd(self.centred, compute_uv=False) ** 2
        self.dimensions = spectrum.sum() ** 2 / (spectrum**2).sum()
        self.width = np.float32(len(vectors) ** (-1 / (self.dimensions + 4)))

    def draw(self, count):
        """Vectors (count, E) float32."""
        parts = []
        for start in range(0, count, 10_000):
            few = min(10_000, count - start)
            chosen = self.vectors[self.generator.integers(len(self.vectors), size=few)]
            weights = self.generator.standard_normal((few, len(self.vectors)), dtype=np.float32)
            parts.append(chosen + self.width * (weights @ self.centred))
        return np.concatenate(parts)


def write(path, vectors):
    count, size = vectors.shape
    columns = {name: pa.nulls(count, kind) for name, kind in TYPES.items() if kind is not None}
    columns["path"] = pa.array([f"{number:07}.mp3" for number in range(count)])
    columns["start_s"], columns["end_s"] = pa.array(np.zeros(count)), pa.array(np.full(count, 2.0))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)
    pq.write_table(pa.table(columns).replace_schema_metadata({FACTS: b'{"format": 1, "model": "synthetic"}'}), path)


def answers(searchable, queries, **options):
    """Found paths, and milliseconds, of every query."""
    paths, times_ms = [], []
    for query in queries:
        start = time.perf_counter()
        found = searchable.similar(query, K, **options)
        times_ms.append(1000 * (time.perf_counter() - start))
        paths.append({row.path for row in found})
    return paths, times_ms


def line(count, name, built_s, recall, times_ms):
    p50, p95 = np.percentile(times_ms[5:], [50, 95])  # the first few warm up
    print(f"{count:>9,}  {name:<22}{built_s:>9.1f}{recall:>9.3f}{p50:>10.1f}{p95:>10.1f}", flush=True)


def measure(count, mixture):
    queries = mixture.draw(QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write(path, mixture.draw(count))
        table, built_s = timed(lambda: search.Table.open(path))
        truth, times_ms = answers(table, queries)
        line(count, "numpy, exact", built_s, 1.0, times_ms)
        del table
        index, built_s = timed(lambda: search.Index.build(path, Path(folder) / "index", ann_rows=1000))
        for name, options in {"LanceDB, exact": {"exact": True}, "LanceDB, approximate": {}}.items():
            paths, times_ms = answers(index, queries, **options)
            recall = np.mean([len(a & b) / K for a, b in zip(truth, paths)])
            line(count, name, built_s, recall, times_ms)


def timed(function):
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model")
    source.add_argument("--table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    arguments = parser.parse_args()
    vectors = demo_vectors(arguments.model) if arguments.model else search.read(arguments.table).vectors()
    mixture = Mixture(vectors, np.random.default_rng(0))
    print(machine())
    print(
        f"{len(vectors):,} vectors of {vectors.shape[1]}, {mixture.dimensions:.1f} dimensions in effect, width {mixture.width:.2f}; {QUERIES} queries, k = {K}"
    )
    print(f"{'rows':>9}  {'search':<22}{'build s':>9}{'recall':>9}{'p50 ms':>10}{'p95 ms':>10}")
    for count in arguments.sizes:
        measure(count, mixture)


if __name__ == "__main__":
    main()

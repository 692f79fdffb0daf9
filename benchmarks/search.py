"""Search at 1,000, 100,000 and 1,000,000 rows: numpy and LanceDB, every row compared or few of them.

    python benchmarks/search.py --model runs/demo/model             embeds the bundled clips, 2 s at a time
    python benchmarks/search.py --table library.parquet             or starts from a table that 'patchifier embed' wrote

The tables are drawn from a Gaussian mixture fitted to the given vectors: one component for each, of a common covariance that is
theirs, scaled down by Scott's rule for as many dimensions as their spectrum has in effect (participation ratio). One row in fifty
repeats another, and one in a hundred is one and the same vector everywhere, as with silence. Queries are further draws, none of
them in the table. The million is drawn and written a piece at a time: 2.1 GB on disk for the table, 2.6 GB for its index.

For each size and way: seconds to build (or to read), bytes, recall at 10 (how many of the files found score at least what the tenth
of an exact search scores: of equal rows any will do), median and 95th percentile of milliseconds a query takes, the median of those of the processor, and the most memory
its process held. Defaults of the index were chosen on seed 0; figures are for another. Writes results/search.json.
"""

import argparse
import concurrent.futures
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchifier.library import search
from patchifier.library.stored import FACTS, TYPES

QUERIES, FEW_QUERIES, K = 100, 30, 10  # few where a query takes seconds
PIECE = 10_000
GENRES, ARTISTS = 100, 5000
WARM = 5  # queries that are not timed


def demo_vectors(model):
    from patchifier import datasets, embed

    embedder = embed.load(model)
    return np.concatenate(
        [
            embedder.embed_windows(clip.path, window_s=2.0, hop_s=1.0).vectors
            for clip in datasets.load("demo").clips
        ]
    )


class Mixture:
    """A Gaussian around every vector given."""

    def __init__(self, vectors, generator):
        self.vectors, self.generator = vectors.astype(np.float32), generator
        self.centred = (self.vectors - self.vectors.mean(0)) / np.float32(np.sqrt(len(vectors)))
        spectrum = np.linalg.svd(self.centred, compute_uv=False) ** 2
        self.dimensions = spectrum.sum() ** 2 / (spectrum**2).sum()
        self.width = np.float32(len(vectors) ** (-1 / (self.dimensions + 4)))
        self.factor = np.linalg.qr(
            self.centred, mode="r"
        )  # of the same covariance, with at most E rows

    def draw(self, count):
        """Vectors (count, E) float32."""
        chosen = self.vectors[self.generator.integers(len(self.vectors), size=count)]
        weights = self.generator.standard_normal((count, len(self.factor)), dtype=np.float32)
        return chosen + self.width * (weights @ self.factor)

    def draw_library(self, count):
        """Yield pieces of `count` vectors, with duplicates."""
        same = self.draw(1)
        for start in range(0, count, PIECE):
            vectors = self.draw(min(PIECE, count - start))
            vectors[1::50] = vectors[0::50][: len(vectors[1::50])]
            vectors[2::100] = same
            yield start, vectors


def write(path, pieces, size):
    kinds = {name: kind or pa.list_(pa.float32(), size) for name, kind in TYPES.items()}
    schema = pa.schema(list(kinds.items()), {FACTS: b'{"format": 1, "model": "synthetic"}'})
    with pq.ParquetWriter(path, schema, use_dictionary=["genre"]) as writer:
        for first, vectors in pieces:
            numbers = range(first, first + len(vectors))
            columns = {name: pa.nulls(len(vectors), kind) for name, kind in kinds.items()}
            columns["path"] = pa.array([f"{number:07}.mp3" for number in numbers])
            columns["genre"] = pa.array(
                [str(number * 7919 % 10_007 % GENRES) for number in numbers]
            )
            columns["artist"] = pa.array([str(number * 7919 % ARTISTS) for number in numbers])
            columns["start_s"], columns["end_s"] = (
                pa.array(np.zeros(len(vectors))),
                pa.array(np.full(len(vectors), 2.0)),
            )
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.ravel()), size
            )
            writer.write_table(pa.table(columns, schema=schema))


def answers(path, queries, options):
    """Open, then the scores found and the milliseconds of every query: (seconds to open, scores, milliseconds)."""
    started = time.perf_counter()
    searchable = search.load(path)
    opened_s = time.perf_counter() - started
    scores, times_ms = [], []
    for query in queries:
        started, worked = time.perf_counter(), time.process_time()
        found = searchable.similar(query, K, **options)
        passed = time.perf_counter() - started, time.process_time() - worked
        times_ms.append([1000 * seconds for seconds in passed])
        scores.append([row.score for row in found])
    return opened_s, scores, times_ms


def some_weights(size):
    """Weights of ten slices of a vector."""
    return np.repeat(np.linspace(0.5, 2.0, 10), np.diff(np.linspace(0, size, 11).astype(int)))


def build(table_path, index_path):
    """Seconds, without those that importing takes."""
    import lancedb  # noqa: F401

    import patchifier.checkpoint  # noqa: F401

    started = time.perf_counter()
    search.Index.build(table_path, index_path, ann_rows=1000)
    return time.perf_counter() - started


def with_memory(function, arguments):
    """What a function gives, and the most bytes that its process held."""
    given = function(*arguments)
    lines = (
        Path("/proc/self/status").read_text().splitlines()
    )  # getrusage would give what the parent held, where that is more
    return given, next(1024 * int(text.split()[1]) for text in lines if text.startswith("VmHWM"))


def alone(function, *arguments):
    """Call in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(with_memory, function, arguments).result()


def bytes_below(path):
    return sum(
        file.stat().st_size
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )


def recall(found, exact):
    """Mean over queries; of equal scores any will do."""
    return float(
        np.mean(
            [
                sum(score >= best[-1] - 1e-9 for score in scores) / len(best)
                for scores, best in zip(found, exact)
            ]
        )
    )


def measure(count, mixture, *, tables_alone):
    """Yield a row for each way."""
    queries = mixture.draw(QUERIES)
    genre = {"where": search.Filter(genre="7")}
    with tempfile.TemporaryDirectory() as folder:
        table, index = Path(folder) / "table.parquet", Path(folder) / "index"
        write(table, mixture.draw_library(count), queries.shape[1])
        (opened_s, exact, times_ms), memory = alone(answers, table, queries, {})
        yield row(count, "numpy, exact", opened_s, bytes_below(table), 1.0, times_ms, memory)
        options = {
            "weights": some_weights(queries.shape[1]),
            "max_per_artist": 2,
            "max_per_album": 2,
        }
        (opened_s, _, times_ms), memory = alone(answers, table, queries, options)
        yield row(
            count, "numpy, weights, limits", opened_s, bytes_below(table), 1.0, times_ms, memory
        )
        if tables_alone:
            return
        few = queries[:FEW_QUERIES] if count > 100_000 else queries
        (_, exact_of_genre, _), _ = alone(answers, table, few, genre)
        built_s, build_memory = alone(build, table, index)
        ways = {
            "LanceDB, exact": (few, {"exact": True}, exact),
            "LanceDB, approximate": (queries, {}, exact),
            "the same, 1 row in 100": (few, genre, exact_of_genre),
        }
        for name, (asked, options, truth) in ways.items():
            (_, found, times_ms), memory = alone(answers, index, asked, options)
            yield {
                **row(
                    count, name, built_s, bytes_below(index), recall(found, truth), times_ms, memory
                ),
                "build_memory_bytes": build_memory,
            }


def row(count, name, built_s, size_bytes, found, times_ms, memory_bytes):
    (p50, processor), (p95, _) = np.percentile(times_ms[WARM:], [50, 95], axis=0)
    return {
        "rows": count, "search": name, "built_s": round(built_s, 1), "bytes": size_bytes, "recall_at_10": round(found, 4),
        "p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "processor_ms": round(processor, 1), "memory_bytes": memory_bytes, "queries": len(times_ms),
    }  # fmt: skip


def line(facts):
    built = f"{facts['built_s']:>9.1f}{facts['bytes'] / 1e6:>9.0f}{facts.get('build_memory_bytes', facts['memory_bytes']) / 1e6:>10.0f}"
    asked = f"{facts['recall_at_10']:>9.3f}{facts['p50_ms']:>9.1f}{facts['p95_ms']:>9.1f}{facts['processor_ms']:>9.1f}{facts['memory_bytes'] / 1e6:>9.0f}"
    return f"{facts['rows']:>9,}  {facts['search']:<24}{built}{asked}"


def main():
    from patchifier.io import write_json
    from patchifier.train.run import machine

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model")
    source.add_argument("--table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tables_alone", action="store_true", help="without LanceDB")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "search.json"
    )
    flags = parser.parse_args()
    vectors = demo_vectors(flags.model) if flags.model else search.read(flags.table).vectors
    mixture = Mixture(vectors, np.random.default_rng(flags.seed))
    facts = {
        "machine": machine(), "seed": flags.seed, "vectors": len(vectors), "size": vectors.shape[1],
        "dimensions_in_effect": round(float(mixture.dimensions), 1), "width": round(float(mixture.width), 2),
        "queries": QUERIES, "k": K, "ways": [],
    }  # fmt: skip
    print(
        f"{facts['machine']}; mixture around {len(vectors):,} vectors of {vectors.shape[1]}, {mixture.dimensions:.1f} dimensions in effect, seed {flags.seed}"
    )
    print(
        f"{'rows':>9}  {'search':<24}{'build s':>9}{'MB':>9}{'build MB':>10}{'recall':>9}{'p50 ms':>9}{'p95 ms':>9}{'proc. ms':>9}{'MB held':>9}"
    )
    for count in flags.sizes:
        for facts_of_way in measure(count, mixture, tables_alone=flags.tables_alone):
            facts["ways"] = sorted([*facts["ways"], facts_of_way], key=lambda way: way["rows"])
            print(line(facts_of_way), flush=True)
            write_json(flags.out, facts)


if __name__ == "__main__":
    main()

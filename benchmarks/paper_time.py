"""How long each step of 'patchifier paper' takes and how much disk it needs, from measured rates; writes the tables of docs/paper.md.

    python benchmarks/paper_time.py               prints the tables and writes them
    python benchmarks/paper_time.py --measure     first measures what results/ lacks: ways of fine-tuning beside full fine-tuning

Rates: results/prepare.json (decoding), results/train_step.json (steps of both stages and of full fine-tuning), results/paper_time.json (the other
ways of fine-tuning and prediction, as a part of full fine-tuning, in seconds of the processor, which neighbours on the machine disturb little),
experiment 10 (leaks). For a GPU results/gpu.json once benchmarks/gpu.sh has run on one; until then what the paper says of its own.
What has not been measured is left out, and the table says so.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

from scale import duration as long_duration
from scale import result, table, write_tables
from timing import keep

from patchifier.config import Config
from patchifier.evaluate.paper import SEEDS, TASKS

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
EPOCHS, MTAT_CLIPS, VALIDATION_CLIPS = 1000, 16_000, 256
SECONDS = {"mtat": 29.1, "gtzan": 30.0, "gtzan-folds": 30.0, "emomusic": 45.0}
CLIPS = {"mtat": MTAT_CLIPS, "gtzan": 930, "gtzan-folds": 1000, "emomusic": 744}
SPLITS = {"gtzan": (443, 197, 290), "emomusic": (504, 115, 125), "gtzan-folds": (800, 100, 100)}
WINDOWS = {"gtzan": 2, "gtzan-folds": 2, "emomusic": 3}  # of 25 patches in a clip
MOVING = ("freeze-extractor", "freeze-bottleneck", "full")
LEAK_S, LEAK_TESTS = 9.8e-3, 290  # experiment 10: one clip of 29 s against that many
PAPER_GPU_HOURS = 22  # both stages on one RTX 3070, as the paper says
RATES = 3
MEASURED_STEPS, WARM_STEPS = 6, 2


# --- measurement ---


def measure():
    """Processor seconds of a step of each way of fine-tuning, and of predicting one window."""
    from patchifier import checkpoint, datasets
    from patchifier.cache import Cache, prepare
    from patchifier.datasets.splits import Splits
    from patchifier.nn.fast import accelerate
    from patchifier.nn.model import Patchifier
    from patchifier.train.tuned_model import METHODS

    config = Config()
    start = checkpoint.Checkpoint(accelerate(Patchifier(config, seed=0)), config)
    with tempfile.TemporaryDirectory() as folder:
        prepare(datasets.load("demo"), Path(folder) / "cache", workers=1)
        data = Cache(Path(folder) / "cache")
        splits = Splits.partitioned(data.clips)
        costs = {method: cost(start, data, splits, config, method) for method in METHODS}
    full = costs["full"]["step_s"]
    facts = {
        "step": {method: found["step_s"] / full for method, found in costs.items()},
        "window": {method: found["window_s"] * 32 / full for method, found in costs.items()},
        "encoded_window": costs["linear-probe"]["encode_s"] * 32 / full,
        "processor_s": costs,
        "unit": "a step of full fine-tuning, 32 clips of 25 patches; window and encoded_window: 32 windows",
    }
    keep("paper_time", facts)


def cost(start, data, splits, config, method):
    """Processor seconds of a training step, of a predicted window, and of what is computed once for a window."""
    from patchifier.train.finetune import Tuning, predict
    from patchifier.train.loop import step
    from patchifier.train.optimiser import make_optimiser
    from patchifier.train.precision import Arithmetic, processor_has_bf16
    from patchifier.train.tuned_model import TunedModel

    arithmetic = Arithmetic("bf16" if processor_has_bf16() else "32")
    tuning = Tuning(start, data, data.task, method, config, device="cpu", arithmetic=arithmetic)
    module = TunedModel(start, data.task, method, config, 0)
    task = tuning.train_task(module, splits, 0, tuning.scaling(splits))
    few = splits.valid[:8]
    encode_s = spent(lambda: [tuning.inputs.windows(int(index)) for index in few])
    windows = sum(len(tuning.inputs.windows(int(index))) for index in few)
    for index in splits.train:
        tuning.inputs.windows(int(index))
    training = config.finetune.training
    wrapped, optimiser = tuning.fabric.setup(module, make_optimiser(module, training, {}))
    total = WARM_STEPS + MEASURED_STEPS

    def take(numbers):
        for number in numbers:
            step(task, number, wrapped, optimiser, tuning.fabric, training, seed=0, total=total)

    take(range(WARM_STEPS))
    step_s = spent(lambda: take(range(WARM_STEPS, total))) / MEASURED_STEPS
    window_s = spent(lambda: predict(module, tuning.inputs, few, activation=lambda x: x)) / windows
    found = {"step_s": step_s, "window_s": window_s, "encode_s": encode_s / windows}
    print(method, {name: f"{1000 * value:.2f} ms" for name, value in found.items()}, flush=True)
    return found


def spent(call):
    started = time.process_time()
    call()
    return time.process_time() - started


# --- tables ---


def best_rate(stage):
    """Clips of 25 patches a second, in the fastest precision."""
    return max(row["clips_per_s"] for row in result("train_step")["rows"] if row["stage"] == stage)


def training_s(task, method, relative, *, folds=1, rates=1):
    """Seconds of all seeds of one way on one task, on the processor of results/train_step.json."""
    train, valid, test = SPLITS[task]
    step_s = 32 / best_rate("full")
    steps = math.ceil(Config().finetune.training.epochs * train / 32)
    checks = steps / Config().finetune.validate_every
    predicted = WINDOWS[task] * (valid * checks + test) / 32
    one = steps * relative["step"][method] + predicted * relative["window"][method]
    encoded = WINDOWS[task] * sum(SPLITS[task]) / 32 * relative["encoded_window"]
    if method == "linear-probe":  # on the model, and on random weights beside it
        return step_s * 2 * (one * SEEDS * folds * rates + encoded)
    return step_s * one * SEEDS * folds * rates


def gpu_training():
    """Time of each stage on a GPU, and where the figure is from."""
    measured = result("gpu")
    if measured is None:
        both = f"{PAPER_GPU_HOURS} hours, both stages (the paper, RTX 3070)"
        return {"one": both, "two": "in the line above"}
    best = {
        stage: min(
            row["schedule_minutes"]
            for row in measured["speed"]
            if row["stage"] == stage and row["batch"] == 32
        )
        for stage in ("one", "two")
    }
    return {
        stage: f"{duration(60 * minutes)} ({measured['machine']})"
        for stage, minutes in best.items()
    }


def times():
    """Rows of the first table: step, work, time on two cores, time on a GPU, source."""
    relative, on_gpu, none = result("paper_time"), gpu_training(), "not measured"
    hours = sum(CLIPS[name] * SECONDS[name] for name in CLIPS) / 3600
    decoding = result("prepare")["x_real_time"]["median"]
    same = "the same, it uses the processor"
    yield (
        "4.3 log-mels",
        f"{hours:.0f} hours of music, four caches",
        duration(hours * 3600 / decoding),
        same,
        "results/prepare.json",
    )
    tested = sum(SPLITS[task][2] for task in TASKS) / LEAK_TESTS
    yield (
        "4.3 leaks",
        f"{MTAT_CLIPS:,} clips against each task, one core",
        f"{duration(MTAT_CLIPS * LEAK_S * tested)} at least",
        same,
        "experiment 10, against 290 clips",
    )
    for stage, name in (("one", "I"), ("two", "II")):
        seconds = EPOCHS * MTAT_CLIPS / best_rate(stage)
        yield (
            f"4.4 stage {name}",
            f"{EPOCHS:,} epochs of {MTAT_CLIPS:,} clips",
            duration(seconds),
            on_gpu[stage],
            "results/train_step.json",
        )
    source = "results/train_step.json, paper_time.json"
    for task in TASKS:
        for method in ("linear-probe", *MOVING):
            seconds = training_s(task, method, relative)
            work = f"{SEEDS} seeds of {Config().finetune.training.epochs:g} epochs"
            yield f"4.5 {task}, {method}", work, duration(seconds), none, source
    seconds = training_s("gtzan-folds", "linear-probe", relative, folds=10)
    yield (
        "4.5 gtzan:folds, linear-probe",
        f"10 folds, {SEEDS} seeds",
        duration(seconds),
        none,
        source,
    )
    seconds = sum(training_s(task, "linear-probe", relative, rates=RATES) for task in TASKS)
    yield (
        "4.5 best rate, both tasks",
        f"{RATES} rates, {SEEDS} seeds",
        duration(seconds),
        none,
        source,
    )
    yield "beside it: compare, report", "three tasks, four encoders", none, none, ""


def disk():
    """Rows of the second table: what, bytes, from."""
    spectrogram, parts = Config().spectrogram, parameters()
    bytes_an_hour = 3600 / spectrogram.frame_s * spectrogram.n_bands * 2
    hours = sum(CLIPS[name] * SECONDS[name] for name in CLIPS) / 3600
    yield (
        "MagnaTagATune, archive and mp3 files",
        gigabytes(2 * 2.973e9),
        "sizes of the archive's parts",
    )
    yield "GTZAN, archive and wav files", gigabytes(2 * 1.23e9), "size of the archive"
    yield "EmoMusic", "not known", "the publisher names no size"
    yield "log-mels, four caches", gigabytes(hours * bytes_an_hour), "float16, 64 bands, hop 512"
    runs = {
        "linear probes": (len(TASKS) * 2 + 20 + 2 * RATES * len(TASKS)) * SEEDS,
        **{method: len(TASKS) * SEEDS for method in MOVING},
    }
    weights = 4 * sum(parts.values())
    trained = {
        "linear probes": 0,
        "freeze-extractor": parts["bottleneck"],
        "freeze-bottleneck": parts["extractor"],
        "full": parts["bottleneck"] + parts["extractor"],
    }
    for name, count in runs.items():
        each = 3 * weights + 8 * trained[name]  # model; weights now and best; two moments
        what = f"{name}: {count} trainings, models and resumable states"
        yield what, gigabytes(count * each), f"{each / 1e6:.0f} MB each"


def parameters():
    """Parameters of each part of the paper's network."""
    from patchifier.nn.model import Patchifier

    counted = {}
    for name, value in Patchifier(Config(), seed=0).named_parameters():
        part = name.split(".")[0]
        counted[part] = counted.get(part, 0) + value.numel()
    return counted


def duration(seconds):
    """In the unit that reads best, seconds included."""
    return f"{seconds:.0f} s" if seconds < 120 else long_duration(seconds)


def gigabytes(size_b):
    return f"{size_b / 1e9:.1f} GB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        measure()
    processor = result("train_step")["machine"]
    heads = ("step", "work", f"{processor}", "one GPU", "rates from")
    tables = {"time": table(heads, times()), "disk": table(("what", "size", "from"), disk())}
    write_tables(PAGE, tables)


if __name__ == "__main__":
    main()

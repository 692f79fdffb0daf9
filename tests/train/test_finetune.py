"""Partial fine-tuning: what is frozen stays to the bit, what learns learns, and what is saved gives what was reported."""

import csv
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from patchifier import audio, cache, checkpoint, embed, tasks, windows
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate.encoders import random_checkpoint
from patchifier.nn.encode import model_hash
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator
from patchifier.tasks import Task
from patchifier.train import finetune, precision
from patchifier.train.finetune import METHODS, Inputs, TunedModel
from patchifier.train.run import Interrupted
from patchifier.train.tuning import Tuning, _score
from tests.builders import TINY, close

pytestmark = pytest.mark.usefixtures("few_draws")
RATE = audio.SAMPLE_RATE
CLIPS = 48
SPLITS = ("train", "train", "train", "valid", "test", "test")  # of pairs of a tone and a noise
PARTS = {"extractor", "bottleneck", "align", "decoder"}
# Windows of two patches that start at each, so that most clips have several.
CONFIG = update(
    Config(),
    {
        "model": TINY | {"max_patches": 2},
        "pretrain": {"n_patches": 2},
        "embed": {"hop_patches": 1},
        "finetune": {
            "training": {"steps": 24, "batch_size": 8, "learning_rate": 3e-3},
            "validate_every": 8,
            "pooling": "mean",
        },
    },
)
KINDS = Task("one-of", ("noise", "tone"))
TAGS = Task("many-of", ("loud", "noise", "tone"))
NUMBERS = Task("numbers", ("level", "brightness"))
TASKS = pytest.mark.parametrize("task", [KINDS, TAGS, NUMBERS], ids=lambda task: task.kind)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, tuple[Clip, ...]]:
    """A cache of tones and noises, loud and quiet, of 0.5 to 2.9 s; the tests choose targets and splits."""
    folder = tmp_path_factory.mktemp("finetune")
    chance, made = np.random.default_rng(0), []
    for number in range(CLIPS):
        time_s = np.arange(int((0.5 + 2.4 * chance.random()) * RATE)) / RATE
        tone, loud, octave = number % 2 == 0, number // 12 % 2 == 0, 4 * chance.random()
        noise = np.zeros(0) if tone else chance.uniform(-1, 1, len(time_s))
        wave = np.sin(2 * np.pi * 150 * 2**octave * time_s) if tone else noise
        path = folder / f"{number:02}.wav"
        audio.save(path, (0.5 if loud else 0.02) * wave)
        info = {"kind": "tone" if tone else "noise", "loud": "loud" if loud else ""}
        made.append(Clip(f"{number:02}", str(path), info=info))
    cache.prepare(Dataset("sounds", tuple(made)), folder / "cache", workers=1)
    return folder / "cache", tuple(made)


def target_of(task: Task | None, clip: Clip):
    """A name, names, or a level and a brightness, neither near standardised."""
    kind, loud = clip.info["kind"], clip.info["loud"]
    if task == NUMBERS:
        return [70.0 if loud else 42.0, 20.0 if kind == "tone" else 32.0]
    return {None: None, KINDS: kind, TAGS: [kind, *([loud] if loud else [])]}[task]


def split_of(number: int) -> str:
    return SPLITS[number // 2 % 6]


def in_folds(number: int, clip: Clip) -> dict:
    return {"split": None, "fold": number // 2 % 4, "group": f"pair-{number // 2}"}


@pytest.fixture(scope="module")
def start(clips) -> Checkpoint:
    """A random network with calibrated batch norms: as good as trained for telling tones from noise."""
    return random_checkpoint(CONFIG, Cache(clips[0]), range(CLIPS), seed=0)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@dataclasses.dataclass
class Bench:
    """Caches with targets, and runs of one method, below a folder."""

    start: Checkpoint
    clips: tuple[Path, tuple[Clip, ...]]
    folder: Path

    def data(self, task=KINDS, name="cache", changes=lambda number, clip: {}) -> Path:
        """The cache, its clips with targets of a task and split in three, or changed otherwise."""
        (source, every), out = self.clips, self.folder / name
        header, *rows = map(json.loads, (source / "index.jsonl").read_text().splitlines())
        header["task"] = dataclasses.asdict(task) if task else None
        for number, (row, clip) in enumerate(zip(rows, every, strict=True)):
            values = {"target": target_of(task, clip), "split": split_of(number)}
            clip = dataclasses.replace(clip, **(values | changes(number, clip)))
            row["clip"] = dataclasses.asdict(clip)
        out.mkdir(exist_ok=True)
        for shared in ("cache.json", "shards"):
            if not (out / shared).exists():
                (out / shared).symlink_to(source / shared)
        lines = [json.dumps(line) + "\n" for line in (header, *rows)]
        (out / "index.jsonl").write_text("".join(lines))
        return out

    def all(self, methods, out="run", data=None, start=None, encoder=None, **finetuning):
        """Results of methods; `resume`, `progress` and fields of the finetune section as keywords."""
        names = {"resume", "progress"} & set(finetuning)
        options = {name: finetuning.pop(name) for name in names}
        if encoder:
            options["encoder"] = encoder
        config = update(CONFIG, {"finetune": finetuning})
        return finetune.finetune(
            start or self.start,
            data or self.data(),
            self.folder / out,
            methods=methods,
            config=config,
            device="cpu",
            **options,
        )

    def tune(self, method="linear-probe", **options):
        return self.all([method], **options)[0]

    def path(self, out="run", method="linear-probe") -> Path:
        return self.folder / out / method

    def bytes(self, name: str, out="run", method="linear-probe") -> bytes:
        return (self.path(out, method) / name).read_bytes()

    def weights(self, out="run", method="linear-probe") -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.path(out, method) / "model" / "model.safetensors")

    def module(self, method="full", seed=0, config=CONFIG) -> TunedModel:
        return TunedModel(self.start, KINDS, method, config, seed=seed)


@pytest.fixture
def bench(start, clips, tmp_path) -> Bench:
    return Bench(start, clips, tmp_path)


@torch.no_grad()
def outputs_of(folder: Path, data: Cache, indices) -> np.ndarray:
    """Activated outputs (n, C) of a saved model for clips of a cache, one window at a time."""
    loaded, rows = checkpoint.load(folder), []
    for index in indices:
        outputs = []
        for window in windows.cut_windows(data.array(int(index)), loaded.config):
            sequence = loaded.model.forward_encoder(torch.from_numpy(window)[None])[-1]
            output = loaded.head(sequence[:, 1:].mean(1))
            outputs.append(tasks.activate(loaded.task, output)[0])
        rows.append(torch.stack(outputs).mean(0))
    return torch.stack(rows).numpy()


def test_the_four_methods_are_the_papers():
    assert {
        "linear-probe": {"head"},
        "freeze-extractor": {"bottleneck", "head"},
        "freeze-bottleneck": {"extractor", "head"},
        "full": {"extractor", "bottleneck", "head"},
    } == METHODS


def test_progress_shows_every_step_and_every_clip_that_is_encoded(bench):
    shown = []

    def progress(title):
        return lambda *row: shown.append((title, *row))

    bench.tune(precision="32", progress=progress)
    assert {title for title, *_ in shown if title != precision.TITLE} == {
        "patchifier, linear-probe"
    }
    notes = [row for _, *row in shown]
    steps = [done for done, _, note in notes if "loss" in note]
    assert steps == [*range(1, 24), 23]  # the last step closes no bar: test clips are to come
    assert notes[0] == [0, 24, "seed 0: validation, clip 1 of 8"]
    assert notes[-2:] == [[23, 24, "seed 0: test, clip 16 of 16"], [24, 24, "seed 0: done"]]


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parts_stay_to_the_bit_and_in_evaluation_mode_and_the_rest_learns(
    method, bench, monkeypatch
):
    modes, forward = [], TunedModel.forward

    def spy(self, values, present):
        parts = dict(self.model.named_children()) | {"head": self.head}
        modes.append({name: {m.training for m in part.modules()} for name, part in parts.items()})
        return forward(self, values, present)

    monkeypatch.setattr(TunedModel, "forward", spy)
    state = bench.start.model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    bench.tune(method, precision="32")
    after = checkpoint.load(bench.path(method=method) / "model").model.state_dict()
    for name in before:
        same, learns = torch.equal(before[name], after[name]), name.split(".")[0] in METHODS[method]
        # a mask token is never seen in fine-tuning, and keys' biases have no gradient
        moving = ("weight", "running_mean", "num_batches_tracked", "positions", "cls")
        assert same if not learns else not (same and name.endswith(moving)), name
    assert all(torch.equal(before[name], state[name]) for name in state)  # nor the given model

    training = [mode for mode in modes if mode["head"] == {True}]
    assert len(training) == 24
    for mode in modes:
        learning = METHODS[method] if mode in training else set()
        assert all(mode[part] == {part in learning} for part in PARTS | {"head"})


@pytest.mark.parametrize("method", METHODS)
def test_only_what_learns_asks_for_gradients(method, bench):
    named = dict(bench.module(method).named_parameters())
    asking = {name.removeprefix("model.") for name in named if named[name].requires_grad}
    assert {name.split(".")[0] for name in asking} == METHODS[method]
    assert {"model.bottleneck.cls", "model.bottleneck.positions"} <= named.keys()


def test_the_head_starts_from_the_seed_alone(bench):
    heads = []
    for general, seed in [(1, 3), (2, 3), (2, 4)]:
        torch.manual_seed(general)
        state = torch.get_rng_state()
        heads.append(bench.module(seed=seed).head.pooler.weight)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("readout", ["cls", "mean"])
@torch.no_grad()
def test_what_frozen_parts_compute_once_is_what_they_compute_each_time(readout, bench):
    data, config = Cache(bench.data()), update(CONFIG, {"finetune": {"pooling": readout}})
    modules = {method: bench.module(method, config=config) for method in METHODS}
    inputs = {method: Inputs(module, data, config) for method, module in modules.items()}
    kinds = ["pooled", "vectors", "patches", "patches"]
    assert [inputs[method].kind for method in METHODS] == kinds
    several = 0
    for index in range(CLIPS):
        given, vectors, probed = (
            inputs[method].windows(index) for method in ("full", "freeze-extractor", "linear-probe")
        )
        several += len(given) > 1
        for window, extracted, pooled in zip(given, vectors, probed, strict=True):
            sequences = bench.start.model.forward_encoder(window[None])
            close(extracted, sequences[0][0], atol=1e-6)
            last = sequences[-1][0]
            wanted = last[0] if readout == "cls" else last[1:].mean(0)
            close(pooled, wanted)
            valid = torch.ones(1, len(window), dtype=torch.bool)
            close(modules["full"].pooled(window[None], valid)[0], wanted)
    assert several > 10


def test_all_methods_start_from_the_same_outputs(bench):
    data, found = Cache(bench.data()), []
    for method in METHODS:
        inputs = Inputs(module := bench.module(method), data, CONFIG)
        found.append(
            finetune.predict(module, inputs, np.arange(CLIPS), activation=lambda outputs: outputs)
        )
    assert found[0].shape == (CLIPS, 2)
    for other in found[1:]:
        close(found[0], other)


def test_a_step_sees_one_window_of_each_of_its_clips(bench):
    data = Cache(bench.data())
    inputs, index = Inputs(bench.module(), data, CONFIG), int(data.frames.argmax())
    windows, drawn = inputs.windows(index), set()
    assert len(windows) >= 3
    for step in range(60):
        values, valid = inputs.draw(np.array([index]), generator(0, "window", step))
        assert valid.all()
        drawn |= {number for number, window in enumerate(windows) if torch.equal(values[0], window)}
    assert drawn == set(range(len(windows)))


@TASKS
@pytest.mark.parametrize(
    ("method", "steps", "rate"), [("linear-probe", 200, 0.01), ("full", 60, 0.003)]
)
def test_what_can_be_heard_is_learned(method, steps, rate, task, bench):
    data = bench.data(task)
    training = {"steps": steps, "learning_rate": rate}
    result = bench.tune(method, data=data, training=training, validate_every=steps // 5)
    # Chance is 0.5, 0.5 and 0. A random network's mean vector tells levels only roughly to a probe.
    least = {KINDS: 0.7, TAGS: 0.65, NUMBERS: 0.05 if method == "linear-probe" else 0.3}[task]
    row, count = result.row, len(result.test)
    assert row["value"] > least
    assert (row["metric"], row["n"], row["method"]) == (task.metric, count, method)
    assert row["low"] <= row["value"] <= row["high"]
    assert {Cache(data).clips[index].split for index in result.test} == {"test"}
    assert result.predictions[0].shape == (count, len(task.names))


@TASKS
def test_the_saved_model_gives_the_predictions_that_were_reported(task, bench, clips):
    data = Cache(bench.data(task))
    result = bench.tune("full", data=data.path)
    folder, tested = bench.path(method="full"), [data.clips[index] for index in result.test]
    rows, predicted = table(folder / "predictions.csv"), result.predictions[0]
    assert [row["id"] for row in rows] == [clip.id for clip in tested]
    written = np.array([[float(row[name]) for name in task.names] for row in rows])
    np.testing.assert_allclose(written, predicted, rtol=1e-5, atol=1e-6)
    again = outputs_of(folder / "model", data, result.test)
    np.testing.assert_allclose(again, written, atol=1e-4)
    # Of files; the cache holds float16.
    answers = embed.load(folder / "model").predict([clip.path for clip in tested])
    np.testing.assert_allclose(answers, predicted, atol=0.35 if task == NUMBERS else 5e-3)
    loaded = checkpoint.load(folder / "model")
    assert (loaded.task, loaded.facts["fine-tuned by"]) == (task, "full")
    targets = tasks.encode_targets(task, [clip.target for clip in tested])
    wanted = tasks.scores(task, targets, predicted)
    assert result.row["value"] == pytest.approx(wanted[task.metric])
    stored = json.loads((folder / "results.json").read_text())
    assert stored["rows"] == [result.row]
    assert stored["every_metric"] == pytest.approx(wanted)


def test_predicted_numbers_are_in_the_units_of_the_targets(bench):
    training = {"steps": 100, "learning_rate": 1e-2}
    levels, brightness = bench.tune(data=bench.data(NUMBERS), training=training).predictions[0].T
    assert 42 - 15 < levels.min() < levels.max() < 70 + 15
    assert levels.max() - levels.min() > 10
    assert 20 < brightness.mean() < 32


@pytest.mark.parametrize("side", ["test", "valid"])
def test_targets_of_test_and_validation_clips_do_not_change_what_is_learned(side, bench):
    def far(number, clip):
        return {"target": [-1e3, 1e3]} if split_of(number) == side else {}

    # Whichever weights validate best, they are the first ones.
    training = {"steps": 1, "learning_rate": 1e-9} if side == "valid" else {}
    data = bench.data(NUMBERS, "near"), bench.data(NUMBERS, "far", far)
    near, far = (bench.tune(data=each, out=f"of {each.name}", training=training) for each in data)
    rtol = 0 if side == "test" else 1e-4
    np.testing.assert_allclose(near.predictions[0], far.predictions[0], rtol=rtol)
    assert (near.row["value"] != far.row["value"]) == (side == "test")


def test_a_constant_number_does_no_harm(bench):
    def constant(number, clip):
        return {"target": [50.0, target_of(NUMBERS, clip)[1]]}

    (predicted,) = bench.tune(data=bench.data(NUMBERS, changes=constant)).predictions
    assert np.isfinite(predicted).all()
    assert np.abs(predicted[:, 0] - 50).max() < 5


def test_the_head_may_learn_at_its_own_rate(bench):
    training = {"learning_rate": 1e-9}
    bench.tune("full", training=training, head_learning_rate=1e-2, validate_every=24)
    moved, fresh = checkpoint.load(bench.path(method="full") / "model"), bench.module()
    positions = moved.model.bottleneck.positions - bench.start.model.bottleneck.positions
    assert positions.abs().max() < 1e-6
    assert (moved.head.pooler.weight - fresh.head.pooler.weight).abs().max() > 1e-2


def test_training_stops_when_patience_is_spent(bench):
    # At this rate nothing moves: after the first validation nothing is better, save by rounding.
    training = {"steps": 500, "learning_rate": 1e-30}
    bench.tune(training=training, validate_every=2, patience=6)
    for name, steps in {"validation": [0, 2, 4, 6], "metrics": [1, 2, 3, 4, 5, 6]}.items():
        assert [int(row["step"]) for row in table(bench.path() / f"{name}.csv")] == steps


def test_the_best_weights_are_kept_not_the_last(bench):
    # A rate so high that training wanders off; in arithmetic that every processor has, with a seed that is best on the way.
    data = Cache(bench.data(NUMBERS))
    options = {"validate_every": 2, "patience": 1000, "precision": "32", "seed": 2}
    training = {"steps": 40, "learning_rate": 0.03}
    result = bench.tune("full", data=data.path, training=training, **options)
    folder = bench.path(method="full")
    rows = table(folder / "validation.csv")
    assert [int(row["step"]) for row in rows] == list(range(0, 41, 2))
    best = int(np.argmax([float(row["r2"]) - 1e-4 * float(row["loss"]) for row in rows]))
    assert 0 < best < len(rows) - 1
    valid = [index for index, clip in enumerate(data.clips) if clip.split == "valid"]
    targets = tasks.encode_targets(NUMBERS, [data.clips[index].target for index in valid])
    restored = tasks.scores(NUMBERS, targets, outputs_of(folder / "model", data, valid))
    for name, value in restored.items():
        assert value == pytest.approx(float(rows[best][name]), abs=1e-4)
    assert abs(restored["r2"] - float(rows[-1]["r2"])) > 1e-3
    assert np.isfinite(result.predictions[0]).all()


def test_methods_are_compared_two_by_two(bench):
    results = bench.all(["linear-probe", "freeze-extractor", "full"], training={"steps": 4})
    scores = {tuned.method: tuned.row["value"] for tuned in results}
    rows = json.loads((bench.folder / "run" / "differences.json").read_text())
    pairs = [(row["first"], row["second"]) for row in rows]
    assert pairs == list(itertools.combinations(scores, 2))
    for row in rows:
        difference = scores[row["first"]] - scores[row["second"]]
        assert row["value"] == pytest.approx(difference, abs=1e-9)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["p_holm"] >= row["p"]
        assert row["equal_predictions"] in (True, False)
    bench.tune(out="one", training={"steps": 2})
    assert not (bench.folder / "one" / "differences.json").exists()


def test_a_model_that_calls_every_clip_the_same_has_learnt_nothing(bench, monkeypatch):
    learnt = bench.tune(training={"steps": 23})
    assert "learnt_nothing" not in learnt.row

    def the_same(tuning, folder, splits, seed, progress):
        return np.tile([[0.2 + 0.1 * seed, 0.8 - 0.1 * seed]], (len(splits.test), 1))

    monkeypatch.setattr(Tuning, "at_best_rate", the_same)
    results = bench.all(["linear-probe", "full"], out="none", n_seeds=2)
    said = f"every clip is called {KINDS.names[1]}"
    assert [one.row["learnt_nothing"] for one in results] == [said, said]
    (row,) = json.loads((bench.folder / "none" / "differences.json").read_text())
    assert row["equal_predictions"] is True


def test_a_run_says_what_it_was_given(bench):
    bench.tune(training={"steps": 2})
    facts = json.loads((bench.folder / "run" / "run.json").read_text())
    assert sum(facts["clips"].values()) == CLIPS
    assert facts["hours"] == pytest.approx(Cache(bench.data()).hours, abs=1e-3)
    assert facts["model weights"] == model_hash(bench.start.model)


def test_all_folds_test_every_clip_exactly_once(bench):
    data = bench.data(changes=in_folds)
    result = bench.tune(data=data, folds="all", training={"steps": 8})
    assert sorted(result.test.tolist()) == list(range(CLIPS))
    assert result.predictions[0].shape == (CLIPS, 2)
    assert result.row["n"] == CLIPS
    rows = table(bench.path() / "predictions.csv")
    assert sorted(row["id"] for row in rows) == [f"{number:02}" for number in range(CLIPS)]
    assert {row["group"] for row in rows} == {f"pair-{number}" for number in range(CLIPS // 2)}
    facts = json.loads((bench.folder / "run" / "run.json").read_text())
    assert "4 folds tested in turn" in facts["split"]


@pytest.mark.parametrize(("test_fold", "tested"), [(None, 3), (1, 1)])
def test_one_fold_is_the_last_or_the_one_asked_for(test_fold, tested, bench):
    data = bench.data(changes=in_folds)
    result = bench.tune(data=data, test_fold=test_fold, training={"steps": 2})
    wanted = [index for index, clip in enumerate(Cache(data).clips) if clip.fold == tested]
    assert sorted(result.test) == wanted
    with pytest.raises(RequestError, match="no fold 9"):
        bench.tune(data=data, out="other", test_fold=9)


def test_several_seeds_are_several_runs_whose_mean_score_counts(bench):
    steps = {"training": {"steps": 4}}
    result = bench.tune(out="several", n_seeds=2, seed=5, **steps)
    singles = [bench.tune(out=f"single-{seed}", seed=seed, **steps) for seed in (5, 6)]
    assert len(result.predictions) == 2
    for one, single in zip(result.predictions, singles, strict=True):
        assert np.array_equal(one, single.predictions[0])
    mean = np.mean([single.row["value"] for single in singles])
    assert result.row["value"] == pytest.approx(mean)
    assert not np.array_equal(*result.predictions)


@pytest.mark.parametrize("method", ["linear-probe", "full"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(method, bench):
    results = []
    for out, general, seed in [("one", 1, 0), ("two", 2, 0), ("other", 2, 1)]:
        torch.manual_seed(general)
        results.append(bench.tune(method, out=out, seed=seed).predictions[0])
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    close(bench.weights("one", method), bench.weights("two", method), atol=0)
    curves = [bench.bytes("validation.csv", out, method) for out in ("one", "two")]
    assert curves[0] == curves[1]


@TASKS
def test_resuming_a_finished_run_gives_the_same_predictions_without_training(task, bench):
    options = {"data": bench.data(task), "training": {"steps": 6}, "validate_every": 2}
    names = ("metrics.csv", "validation.csv", "predictions.csv", "results.json")
    found = []
    for resume in (False, True):
        result = bench.tune("full", resume=resume, **options)
        files = [bench.bytes(name, method="full") for name in names]
        found.append((result, files, bench.weights(method="full")))
    (first, files, weights), (again, same_files, same_weights) = found
    assert np.array_equal(first.predictions[0], again.predictions[0])
    assert (first.row, files) == (again.row, same_files)
    close(weights, same_weights, atol=0)


def test_a_run_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(bench, monkeypatch):
    whole = bench.tune("full", out="whole", precision="32")
    draw, count = Inputs.draw, []

    def stop_at_the_tenth(self, indices, chance):
        count.append(1)
        if len(count) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, indices, chance)

    monkeypatch.setattr(Inputs, "draw", stop_at_the_tenth)
    with pytest.raises(Interrupted):
        bench.tune("full", out="parts", precision="32")
    facts = json.loads((bench.folder / "parts" / "run.json").read_text())
    assert facts["state"] == "interrupted"
    rest = bench.tune("full", out="parts", precision="32", resume=True)
    assert len(count) == 24
    assert np.array_equal(whole.predictions[0], rest.predictions[0])
    curves = [bench.bytes("validation.csv", out, "full") for out in ("whole", "parts")]
    assert curves[0] == curves[1]


def test_all_methods_share_a_run_folder(bench):
    results = bench.all(list(METHODS), training={"steps": 2}, encoder="mine")
    assert [result.method for result in results] == list(METHODS)
    files = {"metrics.csv", "validation.csv", "predictions.csv", "results.json", "model"}
    for result in results:
        assert (result.row["encoder"], result.row["method"]) == ("mine", result.method)
        assert files <= {path.name for path in bench.path(method=result.method).iterdir()}
    facts = json.loads((bench.folder / "run" / "run.json").read_text())
    assert (
        facts.items()
        >= {
            "state": "finished",
            "kind": "finetune",
            "encoder": "mine",
            "dataset": "sounds",
            "metric": "accuracy",
            "parameters": bench.start.model.parameter_count(),
        }.items()
    )


def test_a_model_folder_will_do_as_well_as_a_model(bench):
    checkpoint.save(bench.folder / "model", bench.start)
    by_folder, by_model = (
        bench.tune(out=out, start=start, training={"steps": 2})
        for out, start in [("one", bench.folder / "model"), ("two", bench.start)]
    )
    assert np.array_equal(by_folder.predictions[0], by_model.predictions[0])


def without(side):
    other = "valid" if side == "train" else "train"
    return lambda number, clip: {"split": other} if split_of(number) == side else {}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (None, lambda number, clip: {}, "no targets"),
        (KINDS, lambda number, clip: {"target": None} if number == 0 else {}, "1 of .* no target"),
        (KINDS, without("test"), "no test clips"),
        (KINDS, without("train"), "no train clips"),
    ],
)
def test_clips_without_targets_and_empty_sides_are_refused(task, changes, message, bench):
    with pytest.raises(RequestError, match=message):
        bench.tune(data=bench.data(task, changes=changes))


def test_what_cannot_be_tuned_is_refused_before_anything_is_trained(bench):
    with pytest.raises(RequestError, match=r"'half'.*freeze-bottleneck, full"):
        bench.all(["linear-probe", "half"])
    config = update(bench.start.config, {"spectrogram": {"n_fft": 1024}})
    with pytest.raises(RequestError, match="n_fft is 2048, not 1024"):
        bench.tune(start=dataclasses.replace(bench.start, config=config))
    with pytest.raises(RequestError, match="no targets"):
        bench.tune(data=bench.data(None))
    assert not (bench.folder / "run").exists()


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings_or_clips(bench):
    steps, data = {"training": {"steps": 2}}, bench.data()
    bench.tune(data=data, **steps)
    with pytest.raises(RequestError, match="--resume"):
        bench.tune(data=data, **steps)
    with pytest.raises(RequestError, match="other settings"):
        bench.tune(data=data, training={"steps": 3}, resume=True)
    header, first, *rows = (data / "index.jsonl").read_text().splitlines()
    first = json.dumps(json.loads(first) | {"key": "another"})
    (data / "index.jsonl").write_text("\n".join([header, first, *rows]) + "\n")
    with pytest.raises(RequestError, match="other clips"):
        bench.tune(data=data, resume=True, **steps)


def test_the_rate_that_validates_best_is_tested(bench):
    tried = bench.tune(out="tried", learning_rates=[1e-9, 3e-3])
    rates = json.loads(bench.bytes("rates.json", "tried"))
    assert rates["chosen"] == 3e-3
    assert rates["validation"]["0.003"] > rates["validation"]["1e-09"]
    alone = bench.tune(out="alone")  # CONFIG's own rate is 3e-3
    assert np.array_equal(tried.predictions[0], alone.predictions[0])
    assert bench.bytes("validation.csv", "tried") == bench.bytes("validation.csv", "alone")
    close(bench.weights("tried"), bench.weights("alone"), atol=0)


def test_weights_are_chosen_by_the_loss_where_that_is_asked_for():
    sharper, luckier = {"accuracy": 0.5, "loss": 0.4}, {"accuracy": 0.6, "loss": 0.9}
    assert _score(KINDS, "metric", luckier) > _score(KINDS, "metric", sharper)
    assert _score(KINDS, "loss", luckier) < _score(KINDS, "loss", sharper)
    assert _score(NUMBERS, "metric", {"r2": float("nan"), "loss": 0.4}) == -0.4


@pytest.mark.parametrize("kept", [True, False])
def test_a_whitened_model_is_tuned_and_keeps_its_statistics_if_it_is_embedded_alike(kept, tmp_path):
    config = update(CONFIG, {"embed": {"whiten": True, "summaries": ["pulse"]}})
    begun, other = Checkpoint(Patchifier(config), config), config if kept else CONFIG
    made = TunedModel(begun, KINDS, "full", other, seed=0)
    checkpoint.save(tmp_path / "model", Checkpoint(made.model, other, made.head, KINDS))
    found = checkpoint.load(tmp_path / "model")
    assert (found.config.embed.whiten, found.model.readout is not None) == (kept, kept)

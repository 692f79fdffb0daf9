"""Partial fine-tuning: what is frozen stays to the bit, what learns learns, and what is saved gives what was reported."""

import csv
import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from patchifier import audio, cache, checkpoint, embed, statistics, tasks, windows
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip, Dataset
from patchifier.evaluate.encoders import random_checkpoint
from patchifier.nn.model import Patchifier
from patchifier.seeding import generator
from patchifier.tasks import Task
from patchifier.train import finetune
from patchifier.train.finetune import METHODS, Inputs, TunedModel
from patchifier.train.run import Interrupted

RATE = audio.SAMPLE_RATE
CLIPS = 48
SPLITS = (
    "train",
    "train",
    "train",
    "valid",
    "test",
    "test",
)  # of pairs of a tone and a noise, in turn
PARTS = ("extractor", "bottleneck", "align", "decoder")
# Windows of two patches that start at each, so that most clips have several.
CONFIG = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 4, 4, 8],
            "embed_dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "mlp_dim": 32,
            "max_patches": 2,
        },
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


@pytest.fixture(autouse=True, scope="module")
def _few_draws():
    """Intervals have their own tests; here they only have to be there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "bootstrap", functools.partial(statistics.bootstrap, draws=40))
        yield


# --- clips, targets and runs ---


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, tuple[Clip, ...]]:
    """A cache of tones and noises, loud and quiet, of 0.5 to 2.9 s; clips whose targets and splits the tests choose."""
    folder = tmp_path_factory.mktemp("finetune")
    chance, made = np.random.default_rng(0), []
    for number in range(CLIPS):
        time_s = np.arange(int((0.5 + 2.4 * chance.random()) * RATE)) / RATE
        tone, loud, octave = number % 2 == 0, number // 12 % 2 == 0, 4 * chance.random()
        wave = (
            np.sin(2 * np.pi * 150 * 2**octave * time_s)
            if tone
            else chance.uniform(-1, 1, len(time_s))
        )
        audio.save(folder / f"{number:02}.wav", (0.5 if loud else 0.02) * wave)
        made.append(
            Clip(
                f"{number:02}",
                str(folder / f"{number:02}.wav"),
                info={"kind": "tone" if tone else "noise", "loud": str(loud)},
            )
        )
    cache.prepare(Dataset("sounds", tuple(made)), folder / "cache", workers=1)
    return folder / "cache", tuple(made)


def kind(clip: Clip) -> str:
    return clip.info["kind"]


def tags(clip: Clip) -> list[str]:
    return [kind(clip), *(["loud"] if clip.info["loud"] == "True" else [])]


def numbers(clip: Clip) -> list[float]:
    """A level and a brightness, neither near standardised."""
    return [70.0 if clip.info["loud"] == "True" else 42.0, 20.0 if kind(clip) == "tone" else 32.0]


TARGETS = {KINDS: kind, TAGS: tags, NUMBERS: numbers}
TASKS = pytest.mark.parametrize("task", list(TARGETS), ids=lambda task: task.kind)


def labelled(
    clips, out: Path, task: Task | None = KINDS, *, changes=lambda number, clip: {}
) -> Path:
    """The cache as `out`, its clips with targets of a task and split in three, or changed otherwise."""
    source, every = clips
    header, *rows = [json.loads(line) for line in (source / "index.jsonl").read_text().splitlines()]
    header["task"] = dataclasses.asdict(task) if task else None
    for number, (row, clip) in enumerate(zip(rows, every, strict=True)):
        split = SPLITS[number // 2 % 6]
        values = {"target": TARGETS[task](clip) if task else None, "split": split} | changes(
            number, clip
        )
        row["clip"] = dataclasses.asdict(dataclasses.replace(clip, **values))
    out.mkdir(parents=True)
    for name in ("cache.json", "shards"):
        (out / name).symlink_to(source / name)
    (out / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    return out


def in_folds(number: int, clip: Clip) -> dict:
    return {"split": None, "fold": number // 2 % 4, "group": f"pair-{number // 2}"}


@pytest.fixture(scope="module")
def start(clips) -> Checkpoint:
    """A random network with calibrated batch norms: as good as trained for telling tones from noise."""
    return random_checkpoint(CONFIG, Cache(clips[0]), range(CLIPS), seed=0)


def tune(
    start: Checkpoint,
    data: Path,
    out: Path,
    method: str = "full",
    config: Config = CONFIG,
    **finetuning,
):
    """One method's result; `resume` and fields of the finetune section as keywords."""
    options = {name: finetuning.pop(name) for name in ("resume", "progress") if name in finetuning}
    config = update(config, {"finetune": finetuning})
    return finetune.finetune(
        start, data, out, methods=[method], config=config, device="cpu", **options
    )[0]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def outputs_of(folder: Path, data: Cache, indices) -> np.ndarray:
    """Activated outputs (n, C) of a saved model for clips of a cache, one window at a time."""
    loaded = checkpoint.load(folder)
    rows = []
    with torch.no_grad():
        for index in indices:
            log_mel = torch.from_numpy(np.array(data.log_mel(int(index)), np.float32).T)
            sequences = [
                loaded.model.forward_encoder(window[None])[-1]
                for window in windows.cut_windows(log_mel, loaded.config)
            ]
            outputs = [loaded.head(sequence[:, 1:].mean(1)) for sequence in sequences]
            rows.append(
                torch.stack([tasks.activate(loaded.task, output)[0] for output in outputs]).mean(0)
            )
    return torch.stack(rows).numpy()


# --- the four methods ---


def test_the_four_methods_are_the_papers():
    assert {
        "linear-probe": {"head"},
        "freeze-extractor": {"bottleneck", "head"},
        "freeze-bottleneck": {"extractor", "head"},
        "full": {"extractor", "bottleneck", "head"},
    } == METHODS


def test_progress_shows_every_step_and_every_clip_that_is_encoded(start, clips, tmp_path):
    shown = []
    data = labelled(clips, tmp_path / "cache")
    tune(
        start,
        data,
        tmp_path / "run",
        "linear-probe",
        precision="32",
        progress=lambda title: lambda *row: shown.append((title, *row)),
    )
    assert {title for title, *_ in shown if title != "test of bf16"} == {"patchifier, linear-probe"}
    notes = [(done, total, note) for _, done, total, note in shown]
    steps = [done for done, _, note in notes if "loss" in note]
    assert steps == [*range(1, 24), 23]  # the last step closes no bar: test clips are to come
    assert notes[0] == (0, 24, "seed 0: validation, clip 1 of 8")
    assert notes[-2:] == [(23, 24, "seed 0: test, clip 16 of 16"), (24, 24, "seed 0: done")]


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parts_stay_to_the_bit_and_in_evaluation_mode_and_the_rest_learns(
    method, start, clips, tmp_path, monkeypatch
):
    modes, forward = [], TunedModel.forward

    def spy(self, values, present):
        modes.append(
            {
                name: {module.training for module in part.modules()}
                for name, part in [*self.model.named_children(), ("head", self.head)]
            }
        )
        return forward(self, values, present)

    monkeypatch.setattr(TunedModel, "forward", spy)
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    tune(start, labelled(clips, tmp_path / "cache"), tmp_path / "run", method, precision="32")
    after = checkpoint.load(tmp_path / "run" / method / "model").model.state_dict()

    for part in PARTS:
        names = [name for name in before if name.startswith(part)]
        same = {name for name in names if torch.equal(before[name], after[name])}
        if part not in METHODS[method]:
            assert same == set(names), part
        else:  # a mask token is never seen in fine-tuning, and keys' biases have no gradient
            assert not {
                name
                for name in same
                if name.endswith(
                    ("weight", "running_mean", "num_batches_tracked", "positions", "cls")
                )
            }, part
    assert all(
        torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items()
    )  # nor is the given model touched

    training = [mode for mode in modes if mode["head"] == {True}]
    assert len(training) == 24
    for mode in training:
        assert {part for part in (*PARTS, "head") if mode[part] == {True}} == METHODS[method]
        assert {part for part in (*PARTS, "head") if mode[part] == {False}} == {
            *PARTS,
            "head",
        } - METHODS[method]
    assert all(
        flags == {False} for mode in modes if mode not in training for flags in mode.values()
    )


@pytest.mark.parametrize("method", METHODS)
def test_only_what_learns_asks_for_gradients(method, start):
    module = TunedModel(start, KINDS, method, CONFIG, seed=0)
    asking = {
        name.removeprefix("model.").split(".")[0]
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    assert asking == METHODS[method]
    assert {"bottleneck.cls", "bottleneck.positions"} <= dict(
        module.model.named_parameters()
    ).keys()


def test_the_head_starts_from_the_seed_alone(start):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = TunedModel(start, KINDS, "full", CONFIG, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    two, other = (TunedModel(start, KINDS, "full", CONFIG, seed=seed) for seed in (3, 4))
    assert torch.equal(one.head.pooler.weight, two.head.pooler.weight)
    assert not torch.equal(one.head.pooler.weight, other.head.pooler.weight)


# --- inputs ---


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_what_frozen_parts_compute_once_is_what_they_compute_each_time(
    readout, start, clips, tmp_path
):
    data, config = (
        Cache(labelled(clips, tmp_path / "cache")),
        update(CONFIG, {"finetune": {"pooling": readout}}),
    )
    modules = {method: TunedModel(start, KINDS, method, config, seed=0) for method in METHODS}
    inputs = {method: Inputs(module, data, config) for method, module in modules.items()}
    assert {method: given.kind for method, given in inputs.items()} == {
        "linear-probe": "pooled",
        "freeze-extractor": "vectors",
        "freeze-bottleneck": "patches",
        "full": "patches",
    }
    several = 0
    for index in range(CLIPS):
        windows = inputs["full"].windows(index)
        several += len(windows) > 1
        for number, window in enumerate(windows):
            present = torch.ones(1, len(window), dtype=torch.bool)
            with torch.no_grad():
                sequences = start.model.forward_encoder(window[None])
            torch.testing.assert_close(
                inputs["freeze-extractor"].windows(index)[number],
                sequences[0][0],
                atol=1e-6,
                rtol=0,
            )
            wanted = sequences[-1][0, 0] if readout == "cls" else sequences[-1][0, 1:].mean(0)
            torch.testing.assert_close(
                inputs["linear-probe"].windows(index)[number], wanted, atol=1e-5, rtol=0
            )
            with torch.no_grad():
                torch.testing.assert_close(
                    modules["full"].pooled(window[None], present)[0], wanted, atol=1e-5, rtol=0
                )
        assert len(inputs["linear-probe"].windows(index)) == len(windows)
    assert several > 10


def test_all_methods_start_from_the_same_outputs(start, clips, tmp_path):
    data = Cache(labelled(clips, tmp_path / "cache"))
    found = []
    for method in METHODS:
        module = TunedModel(start, KINDS, method, CONFIG, seed=0)
        found.append(
            finetune.predict(
                module,
                Inputs(module, data, CONFIG),
                np.arange(CLIPS),
                activation=lambda outputs: outputs,
            )
        )
    assert found[0].shape == (CLIPS, 2)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=0)


def test_a_step_sees_one_window_of_each_of_its_clips(start, clips, tmp_path):
    data = Cache(labelled(clips, tmp_path / "cache"))
    inputs = Inputs(TunedModel(start, KINDS, "full", CONFIG, seed=0), data, CONFIG)
    index = int(data.frames.argmax())
    windows = inputs.windows(index)
    assert len(windows) >= 3
    drawn = set()
    for step in range(60):
        values, present = inputs.draw(np.array([index]), generator(0, "window", step))
        assert present.all()
        drawn |= {number for number, window in enumerate(windows) if torch.equal(values[0], window)}
    assert drawn == set(range(len(windows)))


# --- learning, on each kind of task ---


@TASKS
@pytest.mark.parametrize(
    ("method", "steps", "rate"),
    [("linear-probe", 200, 0.01), ("full", 60, 0.003)],
    ids=["linear-probe", "full"],
)
def test_what_can_be_heard_is_learned(method, steps, rate, task, start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache", task)
    result = tune(
        start, data, tmp_path / "run", method, training={"steps": steps, "learning_rate": rate}
    )
    # Chance is 0.5, 0.5 and 0. A random network's mean vector tells levels only roughly to a probe.
    least = {"one-of": 0.7, "many-of": 0.65, "numbers": 0.05 if method == "linear-probe" else 0.3}[
        task.kind
    ]
    assert result.row["value"] > least
    assert (result.row["metric"], result.row["n"], result.row["method"]) == (
        task.metric,
        len(result.test),
        method,
    )
    assert result.row["low"] <= result.row["value"] <= result.row["high"]
    assert [Cache(data).clips[index].split for index in result.test] == ["test"] * len(result.test)
    assert result.predictions[0].shape == (len(result.test), len(task.names))


@TASKS
def test_the_saved_model_gives_the_predictions_that_were_reported(task, start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache", task)
    result = tune(start, data, tmp_path / "run", "full")
    folder = tmp_path / "run" / "full"
    rows = table(folder / "predictions.csv")
    opened = Cache(data)
    assert [row["id"] for row in rows] == [opened.clips[index].id for index in result.test]
    written = np.array([[float(row[name]) for name in task.names] for row in rows])
    again = outputs_of(folder / "model", opened, result.test)
    np.testing.assert_allclose(written, result.predictions[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again, written, atol=1e-4)
    loaded = checkpoint.load(folder / "model")
    assert loaded.task == task
    assert loaded.facts["fine-tuned by"] == "full"
    targets = tasks.encode_targets(task, [opened.clips[index].target for index in result.test])
    assert result.row["value"] == pytest.approx(
        tasks.scores(task, targets, result.predictions[0])[task.metric]
    )
    stored = json.loads((folder / "results.json").read_text())
    assert stored["rows"] == [result.row]
    assert stored["every_metric"] == pytest.approx(
        tasks.scores(task, targets, result.predictions[0])
    )


def test_predicted_numbers_are_in_the_units_of_the_targets(start, clips, tmp_path):
    result = tune(
        start,
        labelled(clips, tmp_path / "cache", NUMBERS),
        tmp_path / "run",
        "linear-probe",
        training={"steps": 100, "learning_rate": 1e-2},
    )
    levels, brightness = result.predictions[0].T
    assert 42 - 15 < levels.min() < levels.max() < 70 + 15
    assert levels.max() - levels.min() > 10
    assert 20 < brightness.mean() < 32


def test_targets_of_tested_clips_change_nothing_but_the_score(start, clips, tmp_path):
    honest = labelled(clips, tmp_path / "honest", NUMBERS)
    turned = labelled(
        clips,
        tmp_path / "turned",
        NUMBERS,
        changes=lambda number, clip: (
            {"target": [-1e3, 1e3]} if SPLITS[number // 2 % 6] == "test" else {}
        ),
    )
    one, two = (
        tune(start, data, tmp_path / f"run-{data.name}", "linear-probe")
        for data in (honest, turned)
    )
    assert np.array_equal(one.predictions[0], two.predictions[0])
    assert one.row["value"] != two.row["value"]


def test_targets_of_validation_clips_do_not_shift_or_stretch_what_is_learned(
    start, clips, tmp_path
):
    far = {
        "changes": lambda number, clip: (
            {"target": [-1e3, 1e3]} if SPLITS[number // 2 % 6] == "valid" else {}
        )
    }
    caches = [
        labelled(clips, tmp_path / name, NUMBERS, **changes)
        for name, changes in (("near", {}), ("far", far))
    ]
    training = {
        "steps": 1,
        "learning_rate": 1e-9,
    }  # whichever weights validate best, they are the first ones
    near, far = (
        tune(start, data, tmp_path / f"run-{data.name}", "linear-probe", training=training)
        for data in caches
    )
    np.testing.assert_allclose(near.predictions[0], far.predictions[0], rtol=1e-4)


def test_a_constant_number_does_no_harm(start, clips, tmp_path):
    data = labelled(
        clips,
        tmp_path / "cache",
        NUMBERS,
        changes=lambda number, clip: {"target": [50.0, numbers(clip)[1]]},
    )
    result = tune(start, data, tmp_path / "run", "linear-probe")
    assert np.isfinite(result.predictions[0]).all()
    assert np.abs(result.predictions[0][:, 0] - 50).max() < 5


def test_the_head_may_learn_at_its_own_rate(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    tune(
        start,
        data,
        tmp_path / "run",
        "full",
        training={"learning_rate": 1e-9},
        head_learning_rate=1e-2,
        validate_every=24,
    )
    folder = tmp_path / "run" / "full" / "model"
    moved = checkpoint.load(folder)
    fresh = TunedModel(start, KINDS, "full", CONFIG, seed=0)
    body = (moved.model.bottleneck.positions - start.model.bottleneck.positions).abs().max()
    head = (moved.head.pooler.weight - fresh.head.pooler.weight).abs().max()
    assert body < 1e-6
    assert head > 1e-2


# --- stopping, and the best weights ---


def test_training_stops_when_patience_is_spent(start, clips, tmp_path):
    # At this rate nothing moves: after the first validation nothing is better, save by rounding.
    data = labelled(clips, tmp_path / "cache")
    tune(
        start,
        data,
        tmp_path / "run",
        "linear-probe",
        training={"steps": 500, "learning_rate": 1e-30},
        validate_every=2,
        patience=6,
    )
    folder = tmp_path / "run" / "linear-probe"
    assert [int(row["step"]) for row in table(folder / "validation.csv")] == [0, 2, 4, 6]
    assert [int(row["step"]) for row in table(folder / "metrics.csv")] == [1, 2, 3, 4, 5, 6]


def test_the_best_weights_are_kept_not_the_last(start, clips, tmp_path):
    # A rate so high that training wanders off; in arithmetic that every processor has, with a seed that is best on the way.
    data = labelled(clips, tmp_path / "cache", NUMBERS)
    result = tune(
        start,
        data,
        tmp_path / "run",
        "full",
        training={"steps": 40, "learning_rate": 0.03},
        validate_every=2,
        patience=1000,
        precision="32",
        seed=1,
    )
    folder = tmp_path / "run" / "full"
    rows = table(folder / "validation.csv")
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(0, 41, 2))
    scores = [float(row["r2"]) - 1e-4 * float(row["loss"]) for row in rows]
    best = int(np.argmax(scores))
    assert 0 < best < len(rows) - 1
    opened = Cache(data)
    valid = [index for index, clip in enumerate(opened.clips) if clip.split == "valid"]
    targets = tasks.encode_targets(NUMBERS, [opened.clips[index].target for index in valid])
    restored = tasks.scores(NUMBERS, targets, outputs_of(folder / "model", opened, valid))
    for name, value in restored.items():
        assert value == pytest.approx(float(rows[best][name]), abs=1e-4)
    assert abs(restored["r2"] - float(rows[-1]["r2"])) > 1e-3
    assert np.isfinite(result.predictions[0]).all()


# --- folds, seeds, repetition ---


def test_all_folds_test_every_clip_exactly_once(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache", changes=in_folds)
    result = tune(start, data, tmp_path / "run", "linear-probe", folds="all", training={"steps": 8})
    assert sorted(result.test.tolist()) == list(range(CLIPS))
    assert result.predictions[0].shape == (CLIPS, 2)
    assert result.row["n"] == CLIPS
    rows = table(tmp_path / "run" / "linear-probe" / "predictions.csv")
    assert sorted(row["id"] for row in rows) == [f"{number:02}" for number in range(CLIPS)]
    assert {row["group"] for row in rows} == {f"pair-{number}" for number in range(CLIPS // 2)}
    assert (
        "4 folds tested in turn" in json.loads((tmp_path / "run" / "run.json").read_text())["split"]
    )


@pytest.mark.parametrize(("test_fold", "tested"), [(None, 3), (1, 1)])
def test_one_fold_is_the_last_or_the_one_asked_for(test_fold, tested, start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache", changes=in_folds)
    result = tune(
        start, data, tmp_path / "run", "linear-probe", test_fold=test_fold, training={"steps": 2}
    )
    assert {Cache(data).clips[index].fold for index in result.test} == {tested}
    assert len(result.test) == sum(clip.fold == tested for clip in Cache(data).clips)


def test_a_fold_that_is_not_there_is_refused(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache", changes=in_folds)
    with pytest.raises(RequestError, match="no fold 9"):
        tune(start, data, tmp_path / "run", "linear-probe", test_fold=9)


def test_several_seeds_are_several_runs_whose_mean_score_counts(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    result = tune(
        start, data, tmp_path / "several", "linear-probe", n_seeds=2, seed=5, training={"steps": 4}
    )
    singles = [
        tune(
            start,
            data,
            tmp_path / f"single-{seed}",
            "linear-probe",
            seed=seed,
            training={"steps": 4},
        )
        for seed in (5, 6)
    ]
    assert len(result.predictions) == 2
    for one, two in zip(result.predictions, singles, strict=True):
        assert np.array_equal(one, two.predictions[0])
    assert result.row["value"] == pytest.approx(
        np.mean([single.row["value"] for single in singles])
    )
    assert not np.array_equal(*result.predictions)


@pytest.mark.parametrize("method", ["linear-probe", "full"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(method, start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    torch.manual_seed(1)
    one = tune(start, data, tmp_path / "one", method)
    torch.manual_seed(2)
    two, other = (
        tune(start, data, tmp_path / "two", method),
        tune(start, data, tmp_path / "other", method, seed=1),
    )
    assert np.array_equal(one.predictions[0], two.predictions[0])
    assert not np.array_equal(one.predictions[0], other.predictions[0])
    first, second = (checkpoint.load(tmp_path / name / method / "model") for name in ("one", "two"))
    for part, again in [(first.model, second.model), (first.head, second.head)]:
        for (name, tensor), twin in zip(
            part.state_dict().items(), again.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, twin), name
    assert (tmp_path / "one" / method / "validation.csv").read_bytes() == (
        tmp_path / "two" / method / "validation.csv"
    ).read_bytes()


@TASKS
def test_resuming_a_finished_run_gives_the_same_predictions_without_training(
    task, start, clips, tmp_path
):
    data = labelled(clips, tmp_path / "cache", task)
    first = tune(start, data, tmp_path / "run", "full", training={"steps": 6}, validate_every=2)
    folder = tmp_path / "run" / "full"
    before = {
        name: (folder / name).read_bytes()
        for name in ("metrics.csv", "validation.csv", "predictions.csv", "results.json")
    }
    weights = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    again = tune(
        start, data, tmp_path / "run", "full", training={"steps": 6}, validate_every=2, resume=True
    )
    assert np.array_equal(first.predictions[0], again.predictions[0])
    assert first.row == again.row
    assert {name: (folder / name).read_bytes() for name in before} == before
    rewritten = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    assert weights.keys() == rewritten.keys()
    assert all(torch.equal(tensor, rewritten[name]) for name, tensor in weights.items())


def test_a_run_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(
    start, clips, tmp_path, monkeypatch
):
    data = labelled(clips, tmp_path / "cache")
    whole = tune(start, data, tmp_path / "whole", "full", precision="32")
    draw, count = Inputs.draw, []

    def stop_at_the_tenth(self, indices, chance):
        count.append(1)
        if len(count) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, indices, chance)

    monkeypatch.setattr(Inputs, "draw", stop_at_the_tenth)
    with pytest.raises(Interrupted):
        tune(start, data, tmp_path / "parts", "full", precision="32")
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["state"] == "interrupted"
    rest = tune(start, data, tmp_path / "parts", "full", precision="32", resume=True)
    assert len(count) == 24
    assert np.array_equal(whole.predictions[0], rest.predictions[0])
    assert (tmp_path / "parts" / "full" / "validation.csv").read_bytes() == (
        tmp_path / "whole" / "full" / "validation.csv"
    ).read_bytes()


def test_all_methods_share_a_run_folder(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    config = update(CONFIG, {"finetune": {"training": {"steps": 2}}})
    results = finetune.finetune(
        start,
        data,
        tmp_path / "run",
        methods=list(METHODS),
        config=config,
        encoder="mine",
        device="cpu",
    )
    assert [result.method for result in results] == list(METHODS)
    for result in results:
        assert (result.row["encoder"], result.row["method"]) == ("mine", result.method)
        assert {"metrics.csv", "validation.csv", "predictions.csv", "results.json", "model"} <= {
            path.name for path in (tmp_path / "run" / result.method).iterdir()
        }
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["state"], facts["kind"], facts["encoder"], facts["dataset"], facts["metric"]) == (
        "finished",
        "finetune",
        "mine",
        "sounds",
        "accuracy",
    )
    assert facts["parameters"] == start.model.parameter_count()


def test_a_model_folder_will_do_as_well_as_a_model(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    checkpoint.save(tmp_path / "model", start)
    config = update(CONFIG, {"finetune": {"training": {"steps": 2}}})
    by_folder = finetune.finetune(
        tmp_path / "model",
        data,
        tmp_path / "one",
        methods=["linear-probe"],
        config=config,
        device="cpu",
    )[0]
    assert np.array_equal(
        by_folder.predictions[0],
        tune(start, data, tmp_path / "two", "linear-probe", training={"steps": 2}).predictions[0],
    )


# --- what is refused ---


def test_clips_without_targets_are_refused(start, clips, tmp_path):
    with pytest.raises(RequestError, match=r"no targets.*manifest with a target column"):
        tune(start, labelled(clips, tmp_path / "cache", None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("missing", "named"), [("test", "no test clips"), ("train", "no train clips")]
)
def test_an_empty_side_is_refused_by_name(missing, named, start, clips, tmp_path):
    other = "valid" if missing == "train" else "train"

    def emptied(number, clip):
        split = SPLITS[number // 2 % 6]
        return {"split": other if split == missing else split}

    with pytest.raises(RequestError, match=named):
        tune(start, labelled(clips, tmp_path / "cache", changes=emptied), tmp_path / "run")


def test_one_clip_without_a_target_among_others_is_refused(start, clips, tmp_path):
    data = labelled(
        clips,
        tmp_path / "cache",
        changes=lambda number, clip: {"target": None} if number == 0 else {},
    )
    with pytest.raises(RequestError, match=r"1 of .* clips have no target"):
        tune(start, data, tmp_path / "run", "linear-probe")


def test_an_unknown_method_is_refused_before_anything_is_trained(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    with pytest.raises(
        RequestError, match=r"'half'.*linear-probe, freeze-extractor, freeze-bottleneck, full"
    ):
        finetune.finetune(
            start,
            data,
            tmp_path / "run",
            methods=["linear-probe", "half"],
            config=CONFIG,
            device="cpu",
        )
    assert not (tmp_path / "run").exists()


def test_fine_tuning_is_not_resumed_on_other_clips(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    tune(start, data, tmp_path / "run", "linear-probe")
    header, first, *rows = (data / "index.jsonl").read_text().splitlines()
    (data / "index.jsonl").write_text(
        "\n".join([header, json.dumps(json.loads(first) | {"key": "another"}), *rows]) + "\n"
    )
    with pytest.raises(RequestError, match="was started on other clips: resume with the cache"):
        tune(start, data, tmp_path / "run", "linear-probe", resume=True)


def test_a_cache_with_other_settings_than_the_models_is_refused(start, clips, tmp_path):
    other = dataclasses.replace(
        start, config=update(start.config, {"spectrogram": {"n_fft": 1024}})
    )
    with pytest.raises(RequestError, match="n_fft is 2048, not 1024"):
        tune(other, labelled(clips, tmp_path / "cache"), tmp_path / "run")


def test_a_run_is_not_overwritten(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    tune(start, data, tmp_path / "run", "linear-probe", training={"steps": 2})
    with pytest.raises(RequestError, match="--resume"):
        tune(start, data, tmp_path / "run", "linear-probe", training={"steps": 2})
    with pytest.raises(RequestError, match="other settings"):
        tune(start, data, tmp_path / "run", "linear-probe", training={"steps": 3}, resume=True)


# --- what is chosen on validation ---


def test_the_rate_that_validates_best_is_tested(start, clips, tmp_path):
    data = labelled(clips, tmp_path / "cache")
    config = update(CONFIG, {"finetune": {"learning_rates": [1e-9, 3e-3]}})
    tried = finetune.finetune(
        start, data, tmp_path / "tried", methods=["linear-probe"], config=config, device="cpu"
    )[0]
    rates = json.loads((tmp_path / "tried" / "linear-probe" / "rates.json").read_text())
    assert rates["chosen"] == 3e-3
    assert rates["validation"]["0.003"] > rates["validation"]["1e-09"]
    alone = tune(start, data, tmp_path / "alone", "linear-probe")  # CONFIG's own rate is 3e-3
    assert np.array_equal(tried.predictions[0], alone.predictions[0])
    curves = [
        (tmp_path / run / "linear-probe" / "validation.csv").read_bytes()
        for run in ("tried", "alone")
    ]
    assert curves[0] == curves[1]
    kept, same = (
        safetensors.torch.load_file(tmp_path / run / "linear-probe" / "model" / "model.safetensors")
        for run in ("tried", "alone")
    )
    assert kept.keys() == same.keys()
    assert all(torch.equal(kept[name], same[name]) for name in kept)


def test_weights_are_chosen_by_the_loss_where_that_is_asked_for():
    from patchifier.train.tuning import _score

    sharper, luckier = {"accuracy": 0.5, "loss": 0.4}, {"accuracy": 0.6, "loss": 0.9}
    assert _score(KINDS, "metric", luckier) > _score(KINDS, "metric", sharper)
    assert _score(KINDS, "loss", luckier) < _score(KINDS, "loss", sharper)
    assert _score(NUMBERS, "metric", {"r2": float("nan"), "loss": 0.4}) == -0.4


# --- what is saved answers as it was tested ---


@TASKS
def test_the_saved_model_answers_about_files_what_it_answered_in_its_test(
    task, start, clips, tmp_path
):
    data = labelled(clips, tmp_path / "cache", task)
    tested = tune(start, data, tmp_path / "run", "full")
    paths = [clips[1][index].path for index in tested.test]
    answers = embed.load(tmp_path / "run" / "full" / "model").predict(paths)
    scale = 70.0 if task.kind == "numbers" else 1.0
    np.testing.assert_allclose(
        answers, tested.predictions[0], atol=5e-3 * scale
    )  # the cache holds float16


@pytest.mark.parametrize("kept", [True, False])
def test_a_whitened_model_is_tuned_and_keeps_its_statistics_if_it_is_embedded_alike(kept, tmp_path):
    config = update(CONFIG, {"embed": {"whiten": True, "summaries": ["pulse"]}})
    begun = checkpoint.Checkpoint(Patchifier(config), config)
    other = config if kept else CONFIG
    made = TunedModel(begun, KINDS, "full", other, seed=0)
    checkpoint.save(tmp_path / "model", checkpoint.Checkpoint(made.model, other, made.head, KINDS))
    found = checkpoint.load(tmp_path / "model")
    assert (found.config.embed.whiten, found.model.readout is not None) == (kept, kept)

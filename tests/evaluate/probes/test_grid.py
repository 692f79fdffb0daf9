"""The grid of 216 heads: trained together as alone, and nothing is chosen by the test side."""

import functools
import importlib.util
import logging
import math
import threading

import numpy as np
import pytest
import scipy.special
import torch
from sklearn import metrics

from patchifier import tasks
from patchifier.config import RequestError
from patchifier.datasets.splits import Splits, with_validation
from patchifier.evaluate import probes
from patchifier.evaluate.probes import grid
from patchifier.evaluate.probes.grid import (
    SETTINGS,
    jukemir,
    run_bytes,
    select,
    stacks,
    train_grid,
)
from patchifier.evaluate.probes.heads import (
    Hyperparameters,
    ProbeData,
    Schedule,
    batch,
    dropout_mask,
    first_weights,
    moments,
    scorer,
)
from patchifier.evaluate.probes.stack import Adam, stack_gradients, train_stack
from patchifier.tasks import Task
from patchifier.train.run import Interrupted
from tests import ROOT

PATH = ROOT / "benchmarks" / "grid.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_the_grid", PATH)
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)
run_one = BENCHMARK.run_one  # a head alone, by torch's own layers and Adam

GENRES = Task("one-of", ("blues", "jazz", "rock"))
KEYS = Task("one-of", ("C major", "G major", "A minor", "C minor", "F# major"), "key_score")
TAGS = Task("many-of", ("calm", "fast", "vocal"))
MOOD = Task("numbers", ("arousal", "valence"))
TASKS = {"genres": GENRES, "keys": KEYS, "tags": TAGS, "mood": MOOD}
ALL = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)

# A grid of 12 that learns in a hundred steps: all six values that differ within the full one.
QUICK = tuple(
    Hyperparameters(standardise, hidden, size, rate, 0.25, decay)
    for standardise, hidden, size in ((True, 0, 16), (True, 8, 16), (False, 8, 48))
    for rate, decay in ((1e-2, 0.0), (1e-2, 1e-2), (5e-2, 0.0), (5e-2, 1e-3))
)
SCHEDULE = Schedule(every_steps=4, patience=6, limit_steps=2000)


def data(task, *, sizes=(90, 40, 50), width=6, noise=1.0, seed=0):
    """Features on different scales, targets that they tell in part, and sides by group."""
    dice = np.random.default_rng(seed)
    n, count = sum(sizes), len(task.names)
    causes = dice.normal(size=(n, width))
    signal = causes @ dice.normal(size=(width, count)) + noise * dice.normal(size=(n, count))
    targets = {
        "one-of": signal.argmax(1),
        "many-of": (signal > 0.5).astype(np.float32),
        "numbers": signal.astype(np.float32),
    }[task.kind]
    places = np.split(np.arange(n), np.cumsum(sizes)[:2])
    groups = np.array([f"track {index // 4}" for index in range(n)])
    return causes * np.logspace(-0.5, 0.5, width) + 0.5, targets, Splits(*places, groups)


def without_validation(sides):
    train = np.concatenate([sides.train, sides.valid])
    return Splits(train, np.array([], int), sides.test, sides.groups)


def quick(task, features, targets, sides, **how):
    return jukemir(
        task, features, targets, sides, **{"settings": QUICK, "schedule": SCHEDULE, **how}
    )


def problem_of(task, **settings):
    features, targets, sides = data(task, **settings)
    return ProbeData.of(task, features, targets, sides, 0)


@functools.cache
def grid_of(task):
    """Runs of all of QUICK on the plain problem of a task. Read them, never change them."""
    return train_grid(problem_of(task), QUICK, SCHEDULE)


def agree(one, other, *, tolerance=0.0):
    """Two runs of a setting are the same run."""
    assert one.setting == other.setting
    for name in ("best_step", "finished"):
        assert getattr(one, name) == getattr(other, name)
    assert len(one.curve) == len(other.curve)
    np.testing.assert_allclose(one.curve, other.curve, rtol=0, atol=tolerance)


# --- the grid ---


def test_the_grid_is_jukemirs():
    assert len(SETTINGS) == len(set(SETTINGS)) == 216
    expected = {
        "standardise": [False, True],
        "hidden": [0, 512],
        "batch": [64, 256],
        "rate": [1e-5, 1e-4, 1e-3],
        "dropout": [0.25, 0.5, 0.75],
        "decay": [0, 1e-4, 1e-3],
    }
    for name, values in expected.items():
        assert sorted({getattr(setting, name) for setting in SETTINGS}) == values
    assert Schedule() == Schedule(every_steps=8, patience=256, limit_steps=1_000_000)


# --- arithmetic against torch's own ---


@ALL
@pytest.mark.parametrize("hidden", [0, 7])
def test_gradients_are_those_of_autograd(task, hidden):
    problem, setting = problem_of(task), Hyperparameters(True, hidden, 16, 1e-3, 0.5, 0.0)
    torch.manual_seed(0)
    weights = first_weights(problem, setting)
    heads = [[0.5 * torch.randn_like(weight) for weight in weights] for _ in range(3)]
    stacked = [torch.stack(same) for same in zip(*heads, strict=True)]
    x, y = batch(problem, setting, 5)
    widths = [x.shape[1], hidden][: 1 + bool(hidden)]
    masks = [
        dropout_mask(problem, setting, 5, *layer) for layer in enumerate([(16, w) for w in widths])
    ]
    found = stack_gradients(task)(stacked, x * masks[0], y, masks[1] if hidden else None)
    for row, head in enumerate(heads):
        head = [weight.requires_grad_() for weight in head]
        outputs = torch.nn.functional.linear(x * masks[0], *head[:2])
        if hidden:
            outputs = torch.nn.functional.linear(torch.relu(outputs) * masks[1], *head[2:])
        wanted = torch.autograd.grad(tasks.loss(task)(outputs, y), head)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[row], other, rtol=1e-4, atol=1e-6)


def test_adam_is_torchs_to_a_millionth_after_fifty_steps():
    rates, decays = [1e-5, 1e-3, 1e-1], [0.0, 1e-3, 0.1]
    torch.manual_seed(0)
    start = [torch.randn(3, 5, 4), torch.randn(3, 5)]
    heads = [[torch.nn.Parameter(weight[row].clone()) for weight in start] for row in range(3)]
    optimisers = [
        torch.optim.Adam(head, lr=rate, weight_decay=decay)
        for head, rate, decay in zip(heads, rates, decays, strict=True)
    ]
    stacked = [weight.clone() for weight in start]
    own = Adam(stacked, torch.tensor(rates), torch.tensor(decays))
    for step in range(50):
        slopes = [torch.randn_like(weight) * 10.0 ** (step % 5 - 3) for weight in start]
        slopes[1][0] = 0  # epsilon and nothing else below the line
        for row, (head, optimiser) in enumerate(zip(heads, optimisers, strict=True)):
            for weight, slope in zip(head, slopes, strict=True):
                weight.grad = slope[row].clone()
            optimiser.step()
        own.step(stacked, [slope.clone() for slope in slopes])
    for index, (weight, begin) in enumerate(zip(stacked, start, strict=True)):
        assert (weight - begin).abs().max() > 1e-4
        wanted = torch.stack([head[index].detach() for head in heads])
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-6)


def test_tiny_gradients_meet_adams_epsilon():
    weight, stacked = torch.nn.Parameter(torch.ones(3)), [torch.ones(1, 3)]
    optimiser = torch.optim.Adam([weight], lr=0.1)
    own = Adam(stacked, torch.tensor([0.1]), torch.tensor([0.0]))
    for _ in range(3):
        weight.grad = torch.tensor([1e-9, 1e-8, 1e-7])
        optimiser.step()
        own.step(stacked, [torch.tensor([[1e-9, 1e-8, 1e-7]])])
    assert weight[0] > 0.9 > weight[2]  # without epsilon all three would be equal
    torch.testing.assert_close(stacked[0][0], weight.detach(), rtol=1e-6, atol=1e-6)


# --- scores ---


@ALL
def test_the_score_of_many_runs_is_the_packages_own_metric(task):
    problem = problem_of(task)
    _, targets, sides = data(task)
    outputs = torch.randn(4, 40, len(task.names), generator=torch.Generator().manual_seed(0))
    outputs = outputs.mul_(4).round_().div_(4)  # so that ties occur
    outputs[3] = 0  # a run that says the same of all
    found = scorer(task, problem.targets[1])(outputs)
    known = targets[sides.valid]
    if task.kind == "numbers":
        known = (known - problem.centre) / problem.spread
    wanted = [tasks.main_score(task, known, run.double().numpy()) for run in outputs]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_scores_are_those_of_scikit_learn():
    outputs = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)).round()
    auc = functools.partial(metrics.roc_auc_score, average="macro")
    for task, score in ((TAGS, auc), (MOOD, metrics.r2_score)):
        _, targets, sides = data(task)
        truth, said = targets[sides.valid], outputs[:, :, : len(task.names)]
        found = scorer(task, torch.from_numpy(truth))(said).item()
        assert found == pytest.approx(score(truth, said[0].numpy()), rel=1e-5)


def test_the_key_score_by_hand():
    truth = torch.eye(5)[[0, 0, 0, 0, 0]]
    # C major answered by itself, its fifth, its relative, its parallel, a stranger
    outputs = torch.eye(5)[None] * 3
    assert scorer(KEYS, truth)(outputs).item() == pytest.approx((1 + 0.5 + 0.3 + 0.2 + 0) / 5)


def test_a_run_that_is_not_finite_scores_less_than_any():
    outputs = torch.zeros(3, 40, 2)
    outputs[1, 7, 1], outputs[2, 3, 0] = math.nan, math.inf
    found = scorer(MOOD, problem_of(MOOD).targets[1])(outputs)
    assert math.isfinite(found[0])
    assert found[1:].tolist() == [-math.inf, -math.inf]


def test_what_has_no_score_is_refused():
    with pytest.raises(RequestError, match="no tag is both present and absent"):
        scorer(TAGS, torch.tensor([[1.0, 0, 0], [1, 0, 0]]))
    with pytest.raises(RequestError, match=r"arousal, valence.* the same for all 3"):
        scorer(MOOD, torch.tensor([[1.0, 2], [1, 2], [1, 2]]))


def test_a_number_that_is_the_same_for_all_clips_is_left_out_of_the_mean():
    truth = torch.tensor([[1.0, 2], [2, 2], [3, 2]])
    outputs = torch.tensor([[[1.0, 7], [2, 7], [5, 7]]])  # SSE 4 of SST 2 for the first number
    assert scorer(MOOD, truth)(outputs).item() == pytest.approx(1 - 4 / 2)


# --- together and alone ---


@ALL
def test_the_grid_at_once_and_one_by_one_are_the_same_runs(task):
    problem, together = problem_of(task), grid_of(task)
    best = select(together)
    few = [run for run in together if run is best or run.setting in QUICK[::3]]  # every value
    alone = [run_one(problem, run.setting, SCHEDULE) for run in few]
    for one, other in zip(few, alone, strict=True):
        agree(one, other, tolerance=1e-4)
    plain = select(alone)
    assert best.setting == plain.setting
    assert len({run.best_step for run in together}) > 3  # runs differ, or nothing was compared
    for weight, other in zip(best.weights, plain.weights, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)


@ALL
def test_a_head_in_a_stack_is_the_head_alone(task):
    problem, group = problem_of(task), list(QUICK[4:8])
    stacked = train_stack(problem, group, SCHEDULE)
    assert len({len(run.curve) for run in stacked}) > 1  # heads left the stack at different times
    for run in stacked:
        (single,) = train_stack(problem, [run.setting], SCHEDULE)  # nothing ever leaves it
        agree(run, single, tolerance=1e-5)
        for weight, other in zip(run.weights, single.weights, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-5)


def test_the_order_of_runs_changes_nothing():
    forth, back = grid_of(GENRES), train_grid(problem_of(GENRES), QUICK[::-1], SCHEDULE)
    assert [run.setting for run in back] == list(QUICK[::-1])
    for one, other in zip(forth, back[::-1], strict=True):
        agree(one, other, tolerance=1e-6)
    assert select(forth).setting == select(back).setting


@pytest.mark.parametrize("threads", [1, 3])
def test_cutting_stacks_and_threads_change_nothing(threads):
    problem, wanted = problem_of(MOOD), grid_of(MOOD)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        few = 2 * threads * run_bytes(problem, QUICK[-1])
        found = train_grid(problem, QUICK, SCHEDULE, stack_bytes=few)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, wanted, strict=True):
        agree(one, other, tolerance=1e-5)


def test_only_the_best_run_keeps_its_weights():
    runs = grid_of(GENRES)
    assert [run for run in runs if run.weights] == [select(runs)]


def test_stacks_hold_runs_alike_within_their_bound():
    problem = problem_of(GENRES, sizes=(300, 100, 10), width=4800)
    found = stacks(problem, SETTINGS, 500_000_000)
    assert sorted(setting for stack in found for setting in stack) == sorted(SETTINGS)
    for stack in found:
        alike = {(one.standardise, one.hidden, one.batch, one.dropout) for one in stack}
        assert len(alike) == 1
        assert len(stack) * run_bytes(problem, stack[0]) <= 500_000_000
    assert max(len(stack) for stack in found) == 9
    assert all(len(stack) == 1 for stack in stacks(problem, SETTINGS, 1))  # one at least
    assert run_bytes(problem, SETTINGS[-1]) > 5 * 4 * 4800 * 512


# --- what is drawn ---


def test_batches_are_drawn_without_replacement_and_the_smaller_begins_the_larger():
    problem = problem_of(GENRES, sizes=(300, 40, 10))
    small, large = (Hyperparameters(False, 0, size, 1e-3, 0.5, 0.0) for size in (64, 256))
    one, other = batch(problem, small, 3)[0], batch(problem, large, 3)[0]
    assert one.shape == (64, 6)
    assert other.shape == (256, 6)
    assert len(np.unique(other.numpy(), axis=0)) == 256
    assert torch.equal(one, other[:64])
    assert not torch.equal(one, batch(problem, small, 4)[0])
    assert len(batch(problem_of(GENRES), large, 0)[0]) == 90  # fewer clips than a batch: all


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    problem, setting = problem_of(GENRES), Hyperparameters(True, 0, 64, 1e-3, share, 0.0)
    mask = dropout_mask(problem, setting, 9, 0, (64, 1000))
    assert (mask == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    assert not torch.equal(mask, dropout_mask(problem, setting, 9, 1, (64, 1000)))
    assert not torch.equal(mask, dropout_mask(problem, setting, 10, 0, (64, 1000)))


def test_what_is_dropped_less_often_is_dropped_more_often_too():
    problem = problem_of(GENRES)
    masks = [
        dropout_mask(problem, Hyperparameters(True, 0, 64, 1e-3, share, 0.0), 0, 0, (64, 50))
        for share in (0.25, 0.5, 0.75)
    ]
    assert (masks[1][masks[0] == 0] == 0).all()
    assert (masks[2][masks[1] == 0] == 0).all()


def test_a_seed_makes_the_result_and_another_another():
    runs = [quick(GENRES, *data(GENRES), seed=seed, settings=QUICK[4:6]) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].predictions, runs[1].predictions)
    assert not np.array_equal(runs[0].predictions, runs[2].predictions)
    assert runs[0].chosen["unfinished_runs"] == 0


# --- stopping and choosing ---


@pytest.mark.parametrize(
    "train",
    [
        lambda problem, schedule: train_grid(problem, QUICK, schedule),
        lambda problem, schedule: [run_one(problem, QUICK[0], schedule)],
    ],
)
def test_a_run_ends_after_exactly_so_many_validations_without_improvement(train):
    for run in train(problem_of(GENRES), Schedule(every_steps=3, patience=5)):
        best = run.best_step // 3  # validations up to the best
        assert run.best_step % 3 == 0
        assert run.finished
        assert len(run.curve) == best + 5
        before = max(run.curve[: best - 1], default=-1)  # an equal score is no improvement
        assert before < run.score == run.curve[best - 1] == max(run.curve)


def test_a_run_is_cut_at_the_limit_and_says_so(caplog):
    schedule = Schedule(every_steps=4, patience=100, limit_steps=42)
    with caplog.at_level(logging.WARNING):
        found = quick(GENRES, *data(GENRES), schedule=schedule)
    assert found.chosen["unfinished_runs"] == 12
    assert "12 of 12 runs still improved" in caplog.text
    runs = train_grid(problem_of(GENRES), QUICK, schedule)
    assert {len(run.curve) for run in runs} == {10}  # 40 steps; 44 would be past the limit
    agree(run_one(problem_of(GENRES), QUICK[0], schedule), runs[0], tolerance=1e-4)
    assert all(run.finished for run in grid_of(GENRES))


@ALL
def test_the_model_that_is_tested_is_the_best_on_validation_not_the_last(task):
    """Validation clips are test clips too: the test figure is the best validation score."""
    features, targets, sides = data(task, noise=3.0)
    again = np.arange(len(features), len(features) + 40)
    groups = np.concatenate([sides.groups, sides.groups[sides.valid]])
    twice = Splits(sides.train, sides.valid, again, groups)
    features = np.concatenate([features, features[sides.valid]])
    targets = np.concatenate([targets, targets[sides.valid]])
    # learns the noise of 90 clips by heart
    settings = [Hyperparameters(True, 64, 48, 1e-2, 0.25, 0.0)]
    schedule = Schedule(every_steps=4, patience=30)
    (run,) = train_grid(ProbeData.of(task, features, targets, twice, 0), settings, schedule)
    assert run.curve[-1] < run.score - 0.005
    found = jukemir(task, features, targets, twice, settings=settings, schedule=schedule)
    score = tasks.main_score(task, targets[twice.test], found.predictions)
    assert score == pytest.approx(run.score, abs=1e-6)
    assert found.chosen["step"] == run.best_step < 4 * len(run.curve)


def test_of_equal_scores_the_plainer_setting_is_chosen():
    schedule = Schedule(every_steps=4, patience=40)
    runs = train_grid(problem_of(GENRES, noise=0.0), QUICK[::-1], schedule)
    top = [run.setting for run in runs if run.score == max(run.score for run in runs)]
    assert len(top) > 1
    assert select(runs).setting == min(top)


@ALL
@pytest.mark.parametrize("protocol", ["linear", "jukemir", "paper"])
def test_the_test_side_has_no_say(task, protocol, monkeypatch):
    paper = functools.partial(probes.paper, schedule=SCHEDULE, rates=(1e-3, 1e-2))
    monkeypatch.setitem(probes.PROTOCOLS, "jukemir", quick)
    monkeypatch.setitem(probes.PROTOCOLS, "paper", paper)
    features, targets, sides = data(task)
    first = probes.probe(protocol, task, features, targets, sides)
    other, moved = targets.copy(), features.copy()
    if task.kind == "one-of":
        other[sides.test] = (targets[sides.test] + 1) % len(task.names)
    else:
        other[sides.test] = 1 - targets[sides.test]
    moved[sides.test[1::2]] = 100 - 7 * moved[sides.test[1::2]]
    again = probes.probe(protocol, task, moved, other, sides)
    assert again.chosen == first.chosen
    assert np.array_equal(first.predictions[::2], again.predictions[::2])
    assert not np.array_equal(first.predictions[1::2], again.predictions[1::2])


@ALL
def test_what_features_tell_is_learned(task):
    features, targets, sides = data(task, noise=0.1, sizes=(200, 60, 80))
    found = quick(task, features, targets, sides)
    assert found.predictions.shape == (80, len(task.names))
    assert tasks.main_score(task, targets[sides.test], found.predictions) > 0.85
    assert found.chosen["runs"] == 12
    assert found.chosen[f"valid_{task.metric}"] > 0.85
    if task.kind == "one-of":
        np.testing.assert_allclose(found.predictions.sum(1), 1)


def test_numbers_come_back_in_their_own_units():
    features, targets, sides = data(MOOD, noise=0.1)
    plain = quick(MOOD, features, targets, sides)
    scale, centre = np.array([1000, 0.01]), np.array([5e4, 7])
    scaled = quick(MOOD, features, targets * scale + centre, sides)
    units = (scaled.predictions - centre) / scale
    np.testing.assert_allclose(units, plain.predictions, atol=0.02)


# --- standardising ---


def test_one_standardiser_fitted_on_training_clips_is_applied_to_all():
    features, targets, sides = data(GENRES)
    # fitted on its own side, or not applied there, this would look otherwise
    features[sides.valid] += 10
    problem = ProbeData.of(GENRES, features, targets, sides, 0)
    train, valid = problem.inputs[True]
    mean, deviation = features[sides.train].mean(0), features[sides.train].std(0)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0, correction=0), 1, rtol=1e-5)
    wanted = (features[sides.valid] - mean) / deviation
    np.testing.assert_allclose(valid, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(problem.inputs[False][1], features[sides.valid], rtol=1e-6)
    (run,) = train_grid(problem, QUICK[:1], SCHEDULE)
    weight, bias = (tensor.numpy() for tensor in run.weights)
    logits = (features[sides.test] - mean) / deviation @ weight.T + bias
    wanted = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(problem.predict(run, features[sides.test]), wanted, rtol=1e-4)


def test_a_feature_that_never_changes_does_no_harm():
    mean, deviation = moments(np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]]))
    np.testing.assert_allclose(mean, [0.1, 3])
    np.testing.assert_allclose(deviation, [1, np.sqrt(8 / 3)])
    features, targets, sides = data(GENRES)
    features[:, 2] = 1e6 / 3
    found = quick(GENRES, features, targets, sides, settings=QUICK[:8])
    assert np.isfinite(found.predictions).all()


# --- sides, and requests that make no sense ---


def test_without_validation_a_tenth_of_the_groups_is_taken():
    sides = without_validation(data(GENRES)[2])
    found = with_validation(sides, 0)
    assert 13 <= len(found.valid) <= 16
    assert sorted([*found.train, *found.valid]) == sorted(sides.train)
    assert not set(sides.groups[found.train]) & set(sides.groups[found.valid])
    assert np.array_equal(found.test, sides.test)
    assert not np.array_equal(np.sort(with_validation(sides, 1).valid), np.sort(found.valid))
    assert with_validation(found, 5) is found
    nobody, groups = np.array([], int), np.array(["a", "a", "a", "b", "c", "c"])
    two = Splits(np.arange(4), nobody, np.arange(4, 6), groups)
    assert {len(with_validation(two, seed).valid) for seed in range(8)} == {1, 3}  # never all
    with pytest.raises(RequestError, match="of one group"):
        with_validation(Splits(np.arange(3), nobody, np.arange(4, 6), groups), 0)


def test_the_grid_makes_its_own_validation_side():
    features, targets, sides = data(GENRES, noise=0.1)
    found = quick(GENRES, features, targets, without_validation(sides))
    assert tasks.main_score(GENRES, targets[sides.test], found.predictions) > 0.8


def test_nothing_is_changed_and_threads_come_back():
    features, targets, sides = data(TAGS)
    before, threads = (features.copy(), targets.copy()), torch.get_num_threads()
    quick(TAGS, features, targets, sides, settings=QUICK[:2])
    assert np.array_equal(features, before[0])
    assert np.array_equal(targets, before[1])
    assert torch.get_num_threads() == threads


def test_an_interrupted_grid_stops_and_leaves_nothing_running():
    threads = torch.get_num_threads()

    def interrupt(done, total, note):
        raise KeyboardInterrupt

    endless = Schedule(every_steps=4, patience=10**9, limit_steps=10**9)
    short = Hyperparameters(True, 0, 16, 1e-3, 0.5, 0.0)
    with pytest.raises(KeyboardInterrupt):
        quick(GENRES, *data(GENRES), settings=[short, *QUICK], progress=interrupt)
    assert torch.get_num_threads() == threads
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        train_stack(problem_of(GENRES), [short], endless, stop)


def test_progress_counts_runs():
    seen = []
    quick(GENRES, *data(GENRES), progress=lambda done, total, note: seen.append((done, total)))
    finished = [pair for pair in dict.fromkeys(seen) if pair[0]]  # more often than a stack ends
    assert finished == [(4, 12), (8, 12), (12, 12)]


def test_progress_is_shown_while_a_stack_trains(monkeypatch):
    """Before the first stack has ended, and with what it trains."""
    monkeypatch.setattr(grid, "PROGRESS_S", 0.01)
    seen = []
    train_grid(problem_of(GENRES), QUICK[:4], SCHEDULE, progress=lambda *shown: seen.append(shown))
    assert (0, 4, "hidden 0, batch 16, dropout 0.25") in seen


def test_an_unknown_protocol_is_refused_by_name():
    said = "no protocol 'cubic', expected one of linear, jukemir, paper"
    with pytest.raises(RequestError, match=said):
        probes.probe("cubic", GENRES, *data(GENRES))


@pytest.mark.parametrize("protocol", ["linear", "jukemir", "paper"])
def test_what_no_probe_can_work_on_is_refused(protocol):
    features, targets, sides = data(GENRES)
    broken, nobody, everybody = features.copy(), np.array([], int), sides.groups
    broken[17, 2] = math.nan
    twice, beyond = (np.append(sides.test, index) for index in (sides.train[0], 10_000))
    beats = Task("per-frame", ("beat",))
    for said, change in {
        "1 clips are not finite numbers, the first is clip 17": {"features": broken},
        "expected one of each": {"targets": targets[:-1]},
        "shape": {"features": features[:, 0]},
        "test split is empty": {"sides": Splits(sides.train, sides.valid, nobody, everybody)},
        "train split is empty": {"sides": Splits(nobody, sides.valid, sides.test, everybody)},
        "listed twice": {"sides": Splits(sides.train, sides.valid, twice, everybody)},
        "test split has clips": {"sides": Splits(sides.train, sides.valid, beyond, everybody)},
        "task is frame-wise": {"task": beats},
    }.items():
        given = {"task": GENRES, "features": features, "targets": targets, "sides": sides} | change
        with pytest.raises(RequestError, match=said):
            probes.probe(protocol, *given.values())


def test_a_grid_or_schedule_that_makes_no_sense_is_refused():
    problem = problem_of(GENRES)
    for settings in ([], [QUICK[0], QUICK[0]]):
        with pytest.raises(RequestError, match="expected at least one, and none twice"):
            train_grid(problem, settings, SCHEDULE)
    for broken in ({"every_steps": 0}, {"patience": 0}, {"limit_steps": 7}):
        with pytest.raises(RequestError, match="makes no sense"):
            Schedule(**broken)


def test_features_that_overflow_are_refused_not_scored():
    features, targets, sides = data(MOOD)
    settings = [Hyperparameters(False, 8, 16, 1e-3, 0.25, 0.0)]
    with pytest.raises(RequestError, match="ever gave finite outputs"):
        quick(MOOD, features * 1e30, targets, sides, settings=settings)

"""Guarantee 1: a run that is killed at any instant and resumed ends with the same bits as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from patchifier import audio, cache, checkpoint, datasets
from patchifier.cache import Cache
from patchifier.config import Config, RequestError, TrainingConfig, digest, update
from patchifier.jobs import LOCK, STATE_FILE
from patchifier.nn.encode import model_hash
from patchifier.seeding import batch_indices, generator
from patchifier.train import loop, precision
from patchifier.train.optimiser import rate_factor
from patchifier.train.pretrain import pretrain
from patchifier.train.run import Interrupted, Run
from tests.builders import TINY

STEPS = 16
STAGE = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-3}
SETTINGS = {
    "model": TINY | {"embed_dim": 32, "mlp_dim": 64},
    "pretrain": {
        "stage_one": STAGE,
        "stage_two": STAGE | {"schedule": "cosine", "warmup_steps": 5, "max_grad_norm": 1.0},
        "validate_every": 8,
        "checkpoint_every_s": 0.0,
        "validation_fraction": 0.2,
        "n_patches": 8,
    },
}
FEW = 6  # steps, where nothing depends on their number
SHORT = {"stage_one": {"steps": FEW}, "stage_two": {"steps": FEW}}
BEYOND = {"n_predictor_layers": 1, "norm_first": True, "estimators": ["tempo"]}
SEVERAL = {  # a teacher, heads and weights, which are in the state too
    "spectrogram": {"n_pitch_bands": 216},
    "model": SETTINGS["model"] | BEYOND,
    "augment": {"pitch_shift": [-2, 2]},
    "pretrain": SETTINGS["pretrain"]
    | {
        "stages": "two",
        "objectives": ["pixels", "timbre", "chroma", "pulse", "contrast", "tempo"],
    },
}
SCRIPT = """
    import json, sys, time
    from patchifier.config import Config, update
    from patchifier.train.pretrain import pretrain
    cache, out, slow = sys.argv[1], sys.argv[2], float(sys.argv[4])
    from patchifier.train import checkpointer
    save = checkpointer.write_tensors
    def save_slowly(path, tensors, *, metadata):  # half a file lies there while this sleeps
        save(path, tensors, metadata=metadata)
        if slow:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            print("saving", flush=True)
            time.sleep(slow)
            path.write_bytes(whole)
    checkpointer.write_tensors = save_slowly
    def progress(title):
        return lambda done, total, note: print(title, done, flush=True)
    pretrain(cache, out, config=update(Config(), json.loads(sys.argv[3])), resume=True, device="cpu", progress=progress)
"""


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    root, chance = tmp_path_factory.mktemp("resume"), np.random.default_rng(0)
    (root / "audio").mkdir()
    for number in range(10):
        wave = 0.1 * chance.standard_normal(22_050 * 8)
        soundfile.write(root / "audio" / f"{number}.wav", wave, 22_050)
    for name, changes in (("cache", SETTINGS), ("wide", SEVERAL)):
        config = update(Config(), changes).spectrogram
        cache.prepare(datasets.load(root / "audio"), root / name, config=config, workers=1)
    return root / "cache"


@pytest.fixture
def train(small_cache, tmp_path):
    """Pre-train in a folder of this name, with changes of the pretrain section; returns the run."""

    def run(name="run", changes=None, data=small_cache, settings=SETTINGS, **options):
        config = update(update(Config(), settings), {"pretrain": changes or {}})
        pretrain(data, tmp_path / name, config=config, device="cpu", **options)
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def uninterrupted(small_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(small_cache, out, config=update(Config(), SETTINGS), device="cpu")
    return out


def facts_of(run, name="run.json"):
    return json.loads((run / name).read_text())


def forget(run, *fields):
    """A run as it was before these fields of the model or the pretrain section came."""
    values = facts_of(run, "config.json")
    for name in fields:
        section, field = name.split(".")
        del values[section][field]
    (run / "config.json").write_text(json.dumps(values))


def start(small_cache, out, *, slow=0.0, settings=SETTINGS):
    arguments = [str(small_cache), str(out), json.dumps(settings), str(slow)]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def kill_after(process, lines):
    """Kill a run when it has said so many lines; False if it ended before."""
    for _ in range(lines):
        if not process.stdout.readline():
            return process.wait() != 0
    process.kill()
    process.wait()
    return True


def same_weights(one, two):
    first, second = (
        safetensors.torch.load_file(out / "model" / "model.safetensors") for out in (one, two)
    )
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


def lines_of(path):
    """Rows of a table without the column that measures time."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    timed = rows[0].index("clips_per_s") if "clips_per_s" in rows[0] else None
    return [[value for place, value in enumerate(row) if place != timed] for row in rows]


def survive_kills(small_cache, uninterrupted, out, *, kills, seed, settings=SETTINGS):
    chance = random.Random(seed)
    for killed in range(kills):
        # Every third one dies while half a checkpoint lies on the disk.
        saving = killed % 3 == 0
        process = start(small_cache, out, slow=30.0 if saving else 0.0, settings=settings)
        if saving:
            while "saving" not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(0.05)
            assert list(out.glob("stage-*/.state.safetensors.new")), "nothing was being written"
            process.kill()
            process.wait()
        else:
            ended = "the run ended before it was killed"
            assert kill_after(process, chance.randrange(1, 2 * STEPS // kills)), ended
    process = start(small_cache, out, settings=settings)
    process.communicate()
    assert process.returncode == 0
    assert same_weights(out, uninterrupted)
    for stage in sorted(path.name for path in uninterrupted.glob("stage-*")):
        for table in ("metrics.csv", "validation.csv"):
            assert lines_of(out / stage / table) == lines_of(uninterrupted / stage / table)


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_bits(small_cache, uninterrupted, tmp_path):
    survive_kills(small_cache, uninterrupted, tmp_path / "run", kills=5, seed=1)


@pytest.mark.slow
def test_a_run_with_several_targets_and_a_teacher_killed_twice_ends_with_the_same_bits(
    small_cache, train, tmp_path
):
    wide = small_cache.parent / "wide"
    whole = train("whole", data=wide, settings=SEVERAL)
    header, *_, last = lines_of(whole / "stage-two" / "validation.csv")
    assert {f"{name}_error" for name in SEVERAL["pretrain"]["objectives"]} <= set(header)
    assert np.isfinite([float(value) for value in last]).all()
    survive_kills(wide, whole, tmp_path / "run", kills=2, seed=3, settings=SEVERAL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_eight_times_ends_with_the_same_bits(
    small_cache, uninterrupted, tmp_path, seed
):
    survive_kills(small_cache, uninterrupted, tmp_path / "run", kills=8, seed=10 + seed)


def test_time_is_written_between_checkpoints_too(train, monkeypatch):
    written = []
    monkeypatch.setattr(loop, "KEEP_TIME_S", 0.0)
    monkeypatch.setattr(Run, "keep_time", lambda run: written.append(run))
    train("run", SHORT | {"checkpoint_every_s": 1e9})
    assert len(written) >= 2 * FEW


def test_a_resumed_run_says_from_which_step_it_goes_on(train):
    said = []
    train("run", SHORT, say=said.append)
    train("run", SHORT, say=said.append, resume=True)
    train("other", SHORT, say=said.append, resume=True)
    began = [line.startswith(f"goes on from step {FEW} of stage II; 8 ") for line in said]
    assert began == [False, True, False]


def test_a_resumed_run_without_a_state_says_that_it_starts_again(train):
    said = []
    run = train("run", SHORT, say=said.append)
    for state in run.rglob(STATE_FILE):
        state.unlink()
    train("run", SHORT, say=said.append, resume=True)
    train("run", SHORT, say=said.append, resume=True)
    assert ["starts again" in line for line in said] == [False, True, False]


def test_time_is_written_at_each_checkpoint_so_a_kill_loses_little_of_it(train, monkeypatch):
    written, keep_time = [], Run.keep_time

    def spy(self):
        keep_time(self)
        states = {path.parent.name for path in self.path.glob("stage-*/state.safetensors")}
        written.append((facts_of(self.path)["seconds"], len(states)))

    monkeypatch.setattr(Run, "keep_time", spy)
    train("run", SHORT)
    assert {states for _, states in written} == {1, 2}  # a checkpoint lies there each time
    assert sorted(written) == written


def test_the_bits_depend_on_the_seed(train, uninterrupted):
    assert not same_weights(train(changes={"seed": 1}), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(train, uninterrupted, tmp_path, number):
    def interrupt(title):
        return lambda done, total, note: (
            signal.raise_signal(number) if title == "stage I" and done == 7 else None
        )

    changes = {"checkpoint_every_s": 1e9}
    with pytest.raises(Interrupted, match=r"step 7 of 16.*--resume"):
        train(changes=changes, progress=interrupt)
    assert facts_of(tmp_path / "run")["state"] == "interrupted"
    assert same_weights(train(changes=changes, resume=True), uninterrupted)


def test_two_trainings_of_one_run_at_once_are_refused(train, uninterrupted):
    def second(title):
        def again(done, total, note):
            if done == 7:
                with pytest.raises(RequestError, match="another run is working"):
                    train(resume=True)

        return again

    assert same_weights(train(progress=second), uninterrupted)


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings_clips_or_weights(
    small_cache, uninterrupted, tmp_path, noise
):
    (tmp_path / "other").mkdir()
    for number in range(8):
        audio.save(tmp_path / "other" / f"{number}.wav", noise(6.0, seed=100 + number))
    cache.prepare(datasets.load(tmp_path / "other"), tmp_path / "cache", workers=1)

    def refused(message, data=small_cache, changes=None, **options):
        config = update(update(Config(), SETTINGS), changes or {})
        with pytest.raises(RequestError, match=message):
            pretrain(data, uninterrupted, config=config, device="cpu", **options)

    refused("--resume")
    refused("other settings", changes={"augment": {"time_stretch": [1, 1]}}, resume=True)
    message = f"other clips: resume with the cache {small_cache}"
    refused(message, data=tmp_path / "cache", resume=True)
    refused("from fresh weights", init=uninterrupted / "model", resume=True)


def test_a_run_from_other_weights_goes_on_without_them(train, uninterrupted):
    run = train(changes=SHORT, init=uninterrupted / "model")
    train(changes=SHORT, resume=True)  # what it was started from need not be there any more
    facts = facts_of(run)
    assert facts["init"] == str(uninterrupted / "model")
    assert checkpoint.load(run / "model").facts["init"] == facts["init"]


def test_a_run_goes_on_after_fields_have_come_that_it_knew_nothing_of(train):
    """One that the first edition began goes on as it began."""
    first = SETTINGS | {"model": SETTINGS["model"] | {"vector_norm": "none"}}
    run = train(changes=SHORT, settings=first)
    forget(run, "model.vector_norm", "pretrain.extractor_lr_scale", "embed.n_components")
    train(changes=SHORT, settings=first, resume=True)
    assert facts_of(run, "config.json")["embed"]["n_components"] == 0


def trapezoid(steps):
    stage = SETTINGS["pretrain"]["stage_two"] | {"schedule": "trapezoid", "steps": steps}
    return {"stages": "two", "stage_two": stage}


def stop_at(step):
    def progress(title):
        def stop(done, total, note):
            if title == "stage II" and done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    return progress


def test_a_trapezoid_is_resumed_with_fewer_steps_before_its_rate_falls(train):
    short = train("short", trapezoid(10))
    with pytest.raises(Interrupted):
        train(changes=trapezoid(40), progress=stop_at(6))
    assert same_weights(short, train(changes=trapezoid(10), resume=True))


def test_a_trapezoid_is_not_resumed_with_a_length_by_which_its_rate_has_fallen(train):
    with pytest.raises(Interrupted):
        train(changes=trapezoid(40), progress=stop_at(9))
    with pytest.raises(RequestError, match="at step 9 of 40, expected at most 8"):
        train(changes=trapezoid(10), resume=True)
    with pytest.raises(RequestError, match="other settings"):
        train(changes=trapezoid(40) | {"n_patches": 6}, resume=True)


def test_a_run_of_groups_is_not_resumed_on_other_groups(small_cache, train):
    groups = {"contrast_positives": "group", "objectives": ["contrast"], "stages": "two"}
    groups["stage_two"] = {"steps": 2, "batch_size": 4}
    run = train(changes=groups)
    held = facts_of(run)
    # by which a comparison finds what it heard
    assert held["music"] == digest(list(Cache(small_cache).keys))
    (run / "run.json").write_text(json.dumps(held | {"groups": "as they were before"}))
    with pytest.raises(RequestError, match="clips in other groups"):
        train(changes=groups, resume=True)


def test_a_damaged_state_is_refused(train):
    state = train(changes=SHORT) / "stage-two" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RequestError, match="damaged"):
        train(changes=SHORT, resume=True)


@pytest.mark.parametrize(("clips", "batch"), [(12, 4), (5, 4)])
def test_an_epoch_sees_every_clip_once_and_batches_cross_epochs_without_loss(clips, batch):
    steps = range(4 * clips // batch)
    seen = np.concatenate([batch_indices(3, step, clips=clips, batch=batch) for step in steps])
    epochs = seen[: 4 * clips].reshape(4, clips)
    assert (np.sort(epochs) == np.arange(clips)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_draws_are_a_pure_function_of_seed_purpose_and_step():
    first = generator(1, "augment", 7).random(5)
    generator(2, "augment", 7).random(1000)
    assert np.array_equal(first, generator(1, "augment", 7).random(5))
    for other in ((1, "mask", 7), (1, "augment", 8), (2, "augment", 7)):
        assert not np.array_equal(first, generator(*other).random(5))
    steps = np.concatenate([generator(0, "augment", step).random(2000) for step in range(20)])
    assert len(np.unique(steps)) == len(steps)


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 55), ("trapezoid", 90)])
def test_learning_rate_warms_up_and_decays(schedule, half):
    """A trapezoid is constant and falls over the last fifth."""
    config = TrainingConfig(warmup_steps=10, schedule=schedule)
    factors = [rate_factor(step, 100, config) for step in range(101)]
    assert factors[0] == 0.1
    assert set(factors[9 : 11 if schedule == "cosine" else 81]) == {1.0}
    assert factors[half] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert rate_factor(99, 100, TrainingConfig()) == 1.0


def test_clipping_and_its_norm_are_written(uninterrupted):
    rows = lines_of(uninterrupted / "stage-two" / "metrics.csv")
    norms = [float(row[rows[0].index("gradient_norm")]) for row in rows[1:]]
    assert len(norms) == STEPS
    assert all(norm > 0 for norm in norms)


def test_what_a_run_settled_stays_even_if_it_is_killed(tmp_path):
    killed = Run(tmp_path / "run", Config()).__enter__()
    precision.record(killed, precision.Arithmetic("bf16"))
    killed.held.close()  # as the system does with the folder of a process that is killed
    again = Run(tmp_path / "run", Config(), resume=True).__enter__()
    again.held.close()  # killed before it settles anything
    with Run(tmp_path / "run", Config(), resume=True) as run:
        assert run.facts["precision"] == "bf16"
    assert facts_of(tmp_path / "run")["precision"] == "bf16"


def test_a_run_that_was_killed_before_its_first_file_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    with Run(tmp_path / "run", None) as run:
        assert run.facts["state"] == "running"


def test_a_run_names_the_weights_of_its_model(uninterrupted):
    model = checkpoint.load(uninterrupted / "model").model
    assert facts_of(uninterrupted)["model weights"] == model_hash(model)

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
from patchifier.jobs import LOCK
from patchifier.seeding import batch_indices, generator
from patchifier.train import precision
from patchifier.train.optimiser import rate_factor
from patchifier.train.pretrain import pretrain
from patchifier.train.run import Interrupted, Run

STEPS = 16
SETTINGS = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 64,
    },
    "pretrain": {
        "stage_one": {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-3},
        "stage_two": {
            "steps": STEPS,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 5,
            "max_grad_norm": 1.0,
        },
        "validate_every": 8,
        "checkpoint_every_s": 0.0,
        "validation_fraction": 0.2,
        "n_patches": 8,
    },
}
SEVERAL = {  # a teacher, heads and weights, which are in the state too
    "spectrogram": {"n_mels": 64, "n_pitch_bands": 216},
    "model": SETTINGS["model"]
    | {
        "n_predictor_layers": 1,
        "norm_first": True,
        "estimators": ["tempo"],
    },
    "augment": {"pitch_shift": [-2, 2]},
    "pretrain": SETTINGS["pretrain"]
    | {
        "stages": "two",
        "objectives": ["pixels", "timbre", "chroma", "pulse", "latent", "contrast", "tempo"],
    },
}
SCRIPT = """
    import json, sys, time
    import safetensors.torch
    from patchifier.config import Config, update
    from patchifier.train.pretrain import pretrain
    cache, out, slow = sys.argv[1], sys.argv[2], float(sys.argv[4])
    save = safetensors.torch.save_file
    def save_slowly(tensors, path, metadata=None):  # half a file lies there while this sleeps
        save(tensors, path, metadata)
        if slow:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            print("saving", flush=True)
            time.sleep(slow)
            path.write_bytes(whole)
    safetensors.torch.save_file = save_slowly
    def progress(title):
        return lambda done, total, note: print(title, done, flush=True)
    pretrain(cache, out, config=update(Config(), json.loads(sys.argv[3])), resume=True, device="cpu", progress=progress)
"""


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    chance = np.random.default_rng(0)
    (root / "audio").mkdir()
    for number in range(10):
        soundfile.write(
            root / "audio" / f"{number}.wav", 0.1 * chance.standard_normal(22_050 * 8), 22_050
        )
    for name, settings in (("cache", SETTINGS), ("wide", SEVERAL)):
        cache.prepare(
            datasets.load(root / "audio"),
            root / name,
            config=update(Config(), settings).spectrogram,
            workers=1,
        )
    return root / "cache"


@pytest.fixture(scope="module")
def uninterrupted(small_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(small_cache, out, config=update(Config(), SETTINGS), device="cpu")
    return out


def start(small_cache, out, *, slow=0.0, settings=SETTINGS):
    import json

    code = textwrap.dedent(SCRIPT)
    command = [
        sys.executable,
        "-c",
        code,
        str(small_cache),
        str(out),
        json.dumps(settings),
        str(slow),
    ]
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
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def lines_of(path):
    """Rows of a table without the column that measures time."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    timed = rows[0].index("clips_per_s") if "clips_per_s" in rows[0] else None
    return [[value for place, value in enumerate(row) if place != timed] for row in rows]


def survive_kills(small_cache, uninterrupted, out, *, kills, seed, settings=SETTINGS):
    chance = random.Random(seed)
    killed = 0
    while killed < kills:
        # Every third one dies while half a checkpoint lies on the disk.
        saving = killed % 3 == 0
        process = start(small_cache, out, slow=30.0 if saving else 0.0, settings=settings)
        if saving:
            while "saving" not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(0.05)
            assert list(out.glob("stage-*/.state.safetensors.new-*")), (
                "no checkpoint was being written"
            )
            process.kill()
            process.wait()
        else:
            assert kill_after(process, chance.randrange(1, 2 * STEPS // kills)), (
                "the run ended before it was killed"
            )
        killed += 1
    process = start(small_cache, out, settings=settings)
    process.communicate()
    assert process.returncode == 0
    assert same_weights(out, uninterrupted)
    for stage in sorted(path.name for path in uninterrupted.glob("stage-*")):
        for table in ("metrics.csv", "validation.csv"):
            assert lines_of(out / stage / table) == lines_of(uninterrupted / stage / table)


def test_a_run_killed_five_times_ends_with_the_same_bits(small_cache, uninterrupted, tmp_path):
    survive_kills(small_cache, uninterrupted, tmp_path / "run", kills=5, seed=1)


def test_a_run_with_several_targets_and_a_teacher_killed_twice_ends_with_the_same_bits(
    small_cache, tmp_path
):
    wide = small_cache.parent / "wide"
    pretrain(wide, tmp_path / "whole", config=update(Config(), SEVERAL), device="cpu")
    header, *_, last = lines_of(tmp_path / "whole" / "stage-two" / "validation.csv")
    assert {f"{name}_error" for name in SEVERAL["pretrain"]["objectives"]} <= set(header)
    assert np.isfinite([float(value) for value in last]).all()
    survive_kills(wide, tmp_path / "whole", tmp_path / "run", kills=2, seed=3, settings=SEVERAL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_eight_times_ends_with_the_same_bits(
    small_cache, uninterrupted, tmp_path, seed
):
    survive_kills(small_cache, uninterrupted, tmp_path / "run", kills=8, seed=10 + seed)


def test_the_bits_depend_on_the_seed(small_cache, uninterrupted, tmp_path):
    other = update(Config(), {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], "seed": 1}})
    pretrain(small_cache, tmp_path / "other", config=other, device="cpu")
    assert not same_weights(tmp_path / "other", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(small_cache, uninterrupted, tmp_path, number):
    def interrupt(title):
        return lambda done, total, note: (
            signal.raise_signal(number) if title == "stage I" and done == 7 else None
        )

    config = update(
        Config(), {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], "checkpoint_every_s": 1e9}}
    )
    with pytest.raises(Interrupted, match=r"step 7 of 16.*--resume"):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu", progress=interrupt)
    assert '"interrupted"' in (tmp_path / "run" / "run.json").read_text()
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu", resume=True)
    assert same_weights(tmp_path / "run", uninterrupted)


def test_a_run_folder_is_not_overwritten(small_cache, uninterrupted):
    with pytest.raises(RequestError, match="--resume"):
        pretrain(small_cache, uninterrupted, config=update(Config(), SETTINGS), device="cpu")


def test_two_trainings_of_one_run_at_once_are_refused(small_cache, uninterrupted, tmp_path):
    def second(title):
        def again(done, total, note):
            if done == 7:
                with pytest.raises(RequestError, match="another run is working"):
                    pretrain(
                        small_cache,
                        tmp_path / "run",
                        config=update(Config(), SETTINGS),
                        device="cpu",
                        resume=True,
                    )

        return again

    pretrain(
        small_cache,
        tmp_path / "run",
        config=update(Config(), SETTINGS),
        device="cpu",
        progress=second,
    )
    assert same_weights(tmp_path / "run", uninterrupted)


def test_a_run_is_not_resumed_with_other_settings(small_cache, uninterrupted):
    with pytest.raises(RequestError, match="other settings"):
        pretrain(
            small_cache,
            uninterrupted,
            config=update(Config(), {**SETTINGS, "augment": {"time_stretch": [1, 1]}}),
            device="cpu",
            resume=True,
        )


def test_a_run_that_the_first_edition_began_is_resumed_as_it_began(small_cache, tmp_path):
    config = update(
        Config(), {**SETTINGS, "model": {**SETTINGS.get("model", {}), "vector_norm": "none"}}
    )
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    del written["model"]["vector_norm"], written["pretrain"]["extractor_lr_scale"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    assert pretrain(
        small_cache, tmp_path / "run", config=config, device="cpu", resume=True
    ).exists()


def test_a_run_is_not_resumed_on_other_clips_or_from_other_weights(
    small_cache, uninterrupted, tmp_path, noise
):
    (tmp_path / "other").mkdir()
    for number in range(8):
        audio.save(tmp_path / "other" / f"{number}.wav", noise(6.0, seed=100 + number))
    cache.prepare(datasets.load(tmp_path / "other"), tmp_path / "cache", workers=1)
    config = update(Config(), SETTINGS)
    with pytest.raises(RequestError, match=f"other clips: resume with the cache {small_cache}"):
        pretrain(tmp_path / "cache", uninterrupted, config=config, device="cpu", resume=True)
    with pytest.raises(RequestError, match="from fresh weights: resume without --init"):
        pretrain(
            small_cache,
            uninterrupted,
            config=config,
            init=uninterrupted / "model",
            device="cpu",
            resume=True,
        )
    run = tmp_path / "run"
    pretrain(small_cache, run, config=config, init=uninterrupted / "model", device="cpu")
    pretrain(
        small_cache, run, config=config, device="cpu", resume=True
    )  # what it was started from need not be there any more
    facts = json.loads((run / "run.json").read_text())
    assert facts["init"] == str(uninterrupted / "model")
    assert checkpoint.load(run / "model").facts["init"] == facts["init"]


def trapezoid(steps):
    stage = {**SETTINGS["pretrain"]["stage_two"], "schedule": "trapezoid", "steps": steps}
    changed = {"stages": "two", "stage_two": stage}
    return update(Config(), {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **changed}})


def stop_at(step):
    def progress(title):
        def stop(done, total, note):
            if title == "stage II" and done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    return progress


def test_a_trapezoid_is_resumed_with_fewer_steps_before_its_rate_falls(small_cache, tmp_path):
    pretrain(small_cache, tmp_path / "short", config=trapezoid(10), device="cpu")
    with pytest.raises(Interrupted):
        pretrain(
            small_cache, tmp_path / "run", config=trapezoid(40), device="cpu", progress=stop_at(6)
        )
    pretrain(small_cache, tmp_path / "run", config=trapezoid(10), resume=True, device="cpu")
    assert same_weights(tmp_path / "short", tmp_path / "run")


def test_a_trapezoid_is_not_resumed_with_a_length_by_which_its_rate_has_fallen(
    small_cache, tmp_path
):
    with pytest.raises(Interrupted):
        pretrain(
            small_cache, tmp_path / "run", config=trapezoid(40), device="cpu", progress=stop_at(9)
        )
    with pytest.raises(RequestError, match="at step 9 of 40, expected at most 8"):
        pretrain(small_cache, tmp_path / "run", config=trapezoid(10), resume=True, device="cpu")
    with pytest.raises(RequestError, match="other settings"):
        pretrain(small_cache, tmp_path / "run", config=update(trapezoid(40), {"pretrain": {"n_patches": 6}}), resume=True, device="cpu")  # fmt: skip


def test_a_run_of_groups_is_not_resumed_on_other_groups(small_cache, tmp_path):
    groups = {
        "contrast_positives": "group",
        "objectives": ["contrast"],
        "stages": "two",
        "stage_two": {"steps": 2, "batch_size": 4},
    }
    config = update(Config(), {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **groups}})
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    facts = tmp_path / "run" / "run.json"
    held = json.loads(facts.read_text())
    assert held["music"] == digest(
        list(Cache(small_cache).keys)
    )  # by which a comparison finds what it heard
    facts.write_text(json.dumps(held | {"groups": "as they were before"}))
    with pytest.raises(
        RequestError, match="was started on clips in other groups: resume with the cache as it was"
    ):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu", resume=True)


def test_a_run_goes_on_after_fields_have_come_that_it_knew_nothing_of(small_cache, tmp_path):
    config = update(Config(), SETTINGS)
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    del facts["embed"]["n_components"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(facts))
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu", resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["embed"]["n_components"] == 0


def test_a_damaged_state_is_refused(small_cache, tmp_path):
    config = update(Config(), SETTINGS)
    pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    state = tmp_path / "run" / "stage-two" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(RequestError, match="damaged"):
        pretrain(small_cache, tmp_path / "run", config=config, device="cpu", resume=True)


def test_an_epoch_sees_every_clip_once():
    seen = np.concatenate([batch_indices(0, step, clips=12, batch=4) for step in range(6)])
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert list(seen[:12]) != list(seen[12:])


def test_batches_cross_epochs_without_loss():
    seen = np.concatenate([batch_indices(3, step, clips=5, batch=4) for step in range(5)])
    assert [sorted(seen[first : first + 5]) for first in range(0, 20, 5)] == [[0, 1, 2, 3, 4]] * 4


def test_draws_are_a_pure_function_of_seed_purpose_and_step():
    first = generator(1, "augment", 7).random(5)
    generator(2, "augment", 7).random(1000)
    assert np.array_equal(first, generator(1, "augment", 7).random(5))
    others = [generator(1, "mask", 7), generator(1, "augment", 8), generator(2, "augment", 7)]
    assert all(not np.array_equal(first, other.random(5)) for other in others)


def test_draws_of_neighbouring_steps_do_not_overlap():
    drawn = np.concatenate([generator(0, "augment", step).random(2000) for step in range(20)])
    assert len(np.unique(drawn)) == len(drawn)


def test_learning_rate_warms_up_and_decays():
    config = TrainingConfig(warmup_steps=10, schedule="cosine")
    factors = [rate_factor(step, 100, config) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert rate_factor(99, 100, TrainingConfig()) == 1.0


def test_the_rate_of_a_trapezoid_is_constant_and_falls_over_the_last_fifth():
    config = TrainingConfig(warmup_steps=10, schedule="trapezoid")
    factors = [rate_factor(step, 100, config) for step in range(101)]
    assert factors[0] == 0.1
    assert set(factors[9:81]) == {1.0}
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)


def test_bf16_trains_both_stages_and_leaves_weights_in_float32(small_cache, tmp_path):
    short = {
        stage: {**SETTINGS["pretrain"][stage], "steps": 3} for stage in ("stage_one", "stage_two")
    }
    config = update(
        Config(), {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **short, "precision": "bf16"}}
    )
    model = pretrain(small_cache, tmp_path / "run", config=config, device="cpu")
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    losses = [
        float(row[-2]) for row in lines_of(tmp_path / "run" / "stage-two" / "metrics.csv")[1:]
    ]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)


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


def test_a_run_that_was_killed_before_its_first_file_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    with Run(tmp_path / "run", None) as run:
        assert run.facts["state"] == "running"

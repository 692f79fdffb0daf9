"""Several processes: the same steps however a batch is shared, other numbers of processes after a stop, workers that die."""

import copy
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from patchifier import cache, datasets
from patchifier.config import Config, RequestError, update
from patchifier.train.distributed import JoinedBatchNorm, join_batch_norm, launch, rank_slice
from tests.builders import TINY, close

MODEL = TINY | {"channels": [4, 4, 4, 8, 8], "embed_dim": 32, "mlp_dim": 64, "dropout": 0.0}
BOTH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def settings(steps=50, **pretrain):
    stage = {"steps": steps, "batch_size": 32, "learning_rate": 1e-4}
    shared = {
        "stage_one": stage,
        "stage_two": stage,
        "n_patches": 6,
        "validation_fraction": 0.1,
        "validate_every": 25,
        "checkpoint_every_s": 0.0,
        "precision": "32",
    }
    return {"model": MODEL, "pretrain": shared | pretrain}


def several(steps, *targets):
    """Beyond the paper: pitch bands and their batch norms, a predictor, and stage II with these targets."""
    estimators = [name for name in targets if name in ("tonic", "tempo")]
    beyond = {"n_predictor_layers": 1, "norm_first": True}
    model = MODEL | beyond | {"estimators": estimators}
    changes = settings(steps, stages="two", objectives=list(targets))
    return changes | {"spectrogram": {"n_pitch_bands": 216}, "model": model}


def prepare(audio, out):
    """A cache with pitch bands."""
    config = update(Config(), several(1, "pixels")).spectrogram
    cache.prepare(datasets.load(audio), out, config=config, workers=1)
    return out


@pytest.fixture(scope="module")
def wide_clips(clips):
    return prepare(clips.parent / "audio", clips.parent / "wide")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A cache of 40 clips of noise of 3 to 9 s, the shorter of which cannot fill a sequence, in four shards."""
    root, chance = tmp_path_factory.mktemp("devices"), np.random.default_rng(0)
    (root / "audio").mkdir()
    for number in range(40):
        level = 0.1 * np.repeat(chance.random(18), 11_025)[: 22_050 * (3 + number % 7)]
        wave = level * chance.standard_normal(len(level))
        soundfile.write(root / "audio" / f"{number:02d}.wav", wave, 22_050)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SHARD_FRAMES", 2600)
        cache.prepare(datasets.load(root / "audio"), root / "cache", workers=1)
    assert len(list((root / "cache" / "shards").glob("*.npy"))) >= 4
    return root / "cache"


@pytest.fixture
def run(clips, tmp_path, child_environment):
    """Pre-train by the command line, alone or in two processes; returns the run folder."""

    def start(
        name, changes, flags="", launcher=(sys.executable,), wait=True, at=clips, **environment
    ):
        config, out = tmp_path / "config.json", tmp_path / name
        config.write_text(json.dumps(changes))
        options = ["--out", str(out), "--config", str(config), "--device", "cpu"]
        process = subprocess.Popen(
            [*launcher, "-m", "patchifier", "pretrain", str(at), *options, *shlex.split(flags)],
            env=child_environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not wait:
            return out, process
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
        return out, output

    return start


def weights(folder, name="model.safetensors"):
    return safetensors.torch.load_file(folder / name)


def require_same_weights(one, other):
    close(weights(one / "model"), weights(other / "model"), atol=0)


def column(out, name, table="metrics.csv", stage="two"):
    rows = [line.split(",") for line in (out / f"stage-{stage}" / table).read_text().splitlines()]
    return np.array([float(row[rows[0].index(name)]) for row in rows[1:]])


def require_same_losses(one, two, steps, stage="two", rtol=1e-5):
    losses = [column(out, "loss", stage=stage) for out in (one, two)]
    assert len(losses[0]) == len(losses[1]) == steps
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=rtol)  # a row has five decimals


DOUBLE = """
    import dataclasses, json, sys
    from pathlib import Path
    import safetensors.torch, torch
    from patchifier.train import loop
    from patchifier.cache import Cache
    from patchifier.config import Config, update
    from patchifier.nn.model import Patchifier
    from patchifier.train.distributed import launch, rank_slice
    from patchifier.train.pretrain import Batches, split, stage_loss, stage_module
    from patchifier.train.run import is_first

    cache, out, changes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    config, data = update(Config(), changes), Cache(cache)
    class Doubles(Batches):
        def __call__(self, step):
            batch = super().__call__(step)
            return dataclasses.replace(batch, patches=batch.patches.double(), target=batch.target.double())

    fabric = launch("cpu", precision="64")
    model = Patchifier(config).double()
    for stage, training in (("one", config.pretrain.stage_one), ("two", config.pretrain.stage_two)):
        if config.pretrain.stages not in ("both", stage):
            continue
        batches = Doubles(data, split(data, config.pretrain).slices, config, stage, training, rank_slice=rank_slice(fabric, training.batch_size))
        job = loop.TrainTask(stage_module(stage, model, batches, config).double(), 36, batches, stage_loss(stage, config.pretrain))
        loop.fit(job, out / stage, config=training, seed=0, validate_every=1000, fabric=fabric)
    if is_first():
        safetensors.torch.save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out / "weights.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [settings(), several(20, "pixels", "timbre", "chroma", "harmony", "pulse", "tonic", "tempo")],
    ids=["paper", "several targets"],
)
def test_two_processes_take_the_steps_of_one_in_double_precision(
    changes, clips, wide_clips, tmp_path, child_environment
):
    data, script = wide_clips if "spectrogram" in changes else clips, tmp_path / "train.py"
    script.write_text(textwrap.dedent(DOUBLE))
    found = []
    for name, launcher in (("one", (sys.executable,)), ("two", BOTH)):
        out = tmp_path / name
        out.mkdir()
        command = [*launcher, str(script), str(data), str(out), json.dumps(changes)]
        subprocess.run(command, env=child_environment, check=True, timeout=240)
        found.append(weights(out, "weights.safetensors"))
    assert {tensor.dtype for tensor in found[0].values()} == {torch.float64, torch.int64}
    close(*found, atol=1e-8)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_in_single_precision(run):
    """Element-wise noise, padding, a share of the masked patches: all that a batch holds."""
    one, _ = run("one", settings())
    two, output = run("two", settings(), "--devices 2")
    assert output.count("model in") == 1, "the second process speaks too"
    for stage, figure in (("one", "mse"), ("two", "masked_mse")):
        require_same_losses(one, two, 50, stage, rtol=0)
        figures = [column(out, figure, "validation.csv", stage) for out in (one, two)]
        np.testing.assert_allclose(*figures, atol=1e-5, rtol=0)
    assert json.loads((two / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets",
    [
        ("pixels", "timbre", "chroma", "harmony", "pulse", "contrast"),
        ("contrast",),
        ("harmony",),
        ("tonic", "tempo"),
    ],
    ids="+".join,
)
def test_two_processes_have_the_losses_of_one_with_several_targets(targets, run, wide_clips):
    """Batch norm of pitch modules, a predictor, padding, a contrast among clips of both, and parts that no target asks anything of."""
    changes = several(10, *targets)
    one, two = (
        run(f"run{flags}", changes, flags, at=wide_clips)[0] for flags in ("", "--devices 2")
    )
    require_same_losses(one, two, 10)
    for name in targets:
        errors = [column(out, f"{name}_error", "validation.csv") for out in (one, two)]
        np.testing.assert_allclose(*errors, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_tell_groups_apart_as_one_does(run, clips, tmp_path):
    """A crop's partner may be the other process's: of six, each has three."""
    for number, path in enumerate(sorted((clips.parent / "audio").iterdir())):
        place = tmp_path / "albums" / str(number // 4) / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    changes, at = several(10, "contrast"), prepare(tmp_path / "albums", tmp_path / "cache")
    changes["pretrain"]["contrast_positives"] = "group"
    changes["pretrain"]["stage_two"]["batch_size"] = 6
    one, two = (run(f"run{flags}", changes, flags, at=at)[0] for flags in ("", "--devices 2"))
    require_same_losses(one, two, 10)


@pytest.mark.slow
def test_two_processes_count_clips_with_notes_and_with_features_as_one_does(
    run, wide_clips, tmp_path
):
    """Shares of a batch hold different numbers of clips about which something is known."""
    for number in range(40):
        if number % 3:
            np.save(tmp_path / f"{number:02d}.npy", np.random.default_rng(number).random(5))
        else:
            notes = {"notes": [[0, 5, 40 + number, 0]], "bpm": 60 + number}
            (tmp_path / f"{number:02d}.json").write_text(json.dumps(notes))
    changes = several(10, "distil", "notes", "bpm")
    changes["pretrain"] |= {"teacher_features": str(tmp_path), "note_labels": str(tmp_path)}
    one, two = (
        run(f"run{flags}", changes, flags, at=wide_clips)[0] for flags in ("", "--devices 2")
    )
    require_same_losses(one, two, 10)


def test_joined_batch_norm_alone_is_batch_norm(monkeypatch):
    """With one process its moments, outputs, buffers and gradients are torch's."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda parts, own: parts[0].copy_(own))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)
    maps = torch.randn(7, 3, 4, 5, dtype=torch.float64)
    plain = torch.nn.BatchNorm2d(3).double()
    with torch.no_grad():
        plain.weight.uniform_()
        plain.bias.uniform_()
    joined = torch.nn.Sequential(copy.deepcopy(plain))
    join_batch_norm(joined)
    assert type(joined[0]) is JoinedBatchNorm
    results = []
    for norm in (plain, joined[0]):
        values = maps.clone().requires_grad_()
        output = norm(values)
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        gradients = [values.grad, norm.weight.grad, norm.bias.grad]
        results.append([output.detach(), *gradients, dict(norm.named_buffers())])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(plain.eval()(maps), joined.eval()(maps))


@pytest.mark.slow
def test_threads_between_processes_have_ended_before_python_does(
    run, clips, tmp_path, child_environment
):
    """One that Python outlives may let go of a tensor of Python's when there is no Python, and the process aborts."""
    (tmp_path / "config.json").write_text(json.dumps(settings(steps=2)))
    (tmp_path / "train.py").write_text(
        "import atexit, os, runpy, sys\n"
        "def names():  # registered first, it is called last\n"
        "    tasks = [open(f'/proc/self/task/{task}/comm').read().strip() for task in os.listdir('/proc/self/task')]\n"
        "    open(sys.argv[-1] + os.environ['RANK'], 'w').write(' '.join(tasks))\n"
        "atexit.register(names); out = sys.argv.pop()\n"
        "sys.argv[0] = 'patchifier'; atexit.register(sys.argv.append, out); runpy.run_module('patchifier', run_name='__main__')\n"
    )
    flags = f"--out {tmp_path}/run --config {tmp_path}/config.json --device cpu {tmp_path}/threads-"
    command = [*BOTH, str(tmp_path / "train.py"), "pretrain", str(clips), *shlex.split(flags)]
    subprocess.run(command, env=child_environment, check=True, timeout=240, capture_output=True)
    for rank in "01":
        assert "gloo" not in (tmp_path / f"threads-{rank}").read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(run):
    """Stopped at step 20 of each number, resumed with the other: the losses of a run that was not stopped."""
    changes = settings(steps=24, stages="two")
    whole, _ = run("whole", changes)
    for name, first, second in (("more", "", "--devices 2"), ("fewer", "--devices 2", "")):
        out, process = run(name, changes, first, wait=False)
        for line in process.stdout:
            if "20/24" in line or " 83" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        run(name, changes, f"--resume {second}")
        require_same_losses(out, whole, 24, rtol=0)


def test_a_batch_that_cannot_be_shared_is_refused():
    class Three:
        world_size, global_rank = 3, 0

    with pytest.raises(RequestError, match=r"batch of 32 clips cannot be shared by 3 processes"):
        rank_slice(Three(), 32)
    assert rank_slice(launch("cpu"), 32) == slice(0, 32)


def test_devices_that_are_not_there_are_refused():
    more = torch.cuda.device_count() + 2
    with pytest.raises(RequestError, match=f"cannot use {more} devices 'cuda' on 1 machine"):
        launch("cuda", devices=more)


@pytest.mark.slow
def test_a_worker_killed_is_replaced_and_the_run_ends_as_if_it_had_not(run, child_environment):
    changes = settings(steps=60, stages="two")
    whole, _ = run("whole", changes, launcher=BOTH)
    launcher = (*BOTH, "--max-restarts", "2")
    # Else torchrun keeps one store for all attempts, and a process that is started again may call on one that is dead (docs/scale.md).
    alone = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    out, process = run("killed", changes, launcher=launcher, wait=False, **alone)
    state, metrics = (out / "stage-two" / name for name in ("state.safetensors", "metrics.csv"))
    wait_for(lambda: state.exists() and len(metrics.read_text().splitlines()) > 12, process)
    command = ["pgrep", "-P", str(process.pid)]
    victims = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(victims[-1]), signal.SIGKILL)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert len(column(out, "loss")) == 60
    require_same_weights(whole, out)


def wait_for(happened, process):
    for _ in range(1200):
        if happened():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    pytest.fail("it never happened")


@pytest.mark.slow
def test_a_process_reads_its_own_part_of_the_cache_alone(run, clips, tmp_path):
    """With the shards of the first part missing for the second process, and the other way round, the run is that of the whole cache."""
    changes = settings(steps=6, stages="two", n_cache_parts=2)
    whole, _ = run("whole", changes, launcher=BOTH)
    parts = cache.Cache(clips).parts(2)
    for number, part in enumerate(parts):
        own = Path(shutil.copytree(clips, tmp_path / f"node-{number}"))
        for path in cache.Cache(own).shard_files(parts[1 - number]):
            path.unlink()
        assert len(part) > 5
    (tmp_path / "each.py").write_text(
        "import os, sys, runpy\n"
        "place = sys.argv.index('CACHE'); sys.argv[place] = sys.argv.pop() + os.environ['RANK']\n"
        "sys.argv[0] = 'patchifier'; runpy.run_module('patchifier', run_name='__main__')\n"
    )
    flags = f"--out {tmp_path}/split --config {tmp_path}/config.json --device cpu {tmp_path}/node-"
    command = [*BOTH, str(tmp_path / "each.py"), "pretrain", "CACHE", *shlex.split(flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    require_same_weights(whole, tmp_path / "split")


def test_a_clip_of_a_missing_shard_is_refused_by_the_name_of_the_file(clips, tmp_path):
    own = Path(shutil.copytree(clips, tmp_path / "own"))
    first, second = cache.Cache(own).parts(2)
    for path in cache.Cache(own).shard_files(first):
        path.unlink()
    with pytest.raises(RequestError, match="cannot be read"):
        cache.Cache(own)
    data = cache.Cache(own, partial=True)
    assert len(data.log_mel(int(second[0]))) > 0
    with pytest.raises(RequestError, match=r"shards/\d+\.npy is missing"):
        data.log_mel(int(first[0]))


def test_parts_hold_every_clip_once_and_are_of_like_size(clips):
    data = cache.Cache(clips)
    for count in (1, 2, 4):
        parts = data.parts(count)
        assert sorted(np.concatenate(parts)) == list(range(len(data.clips)))
        frames = [data.frames[part].sum() for part in parts]
        assert max(frames) < 2 * min(frames)
    with pytest.raises(RequestError, match="cannot be dealt out to 100 parts"):
        data.parts(100)

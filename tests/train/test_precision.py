"""Arithmetic of training: bf16 only where a self-test of the model's own operations passes; and a loss that is not a number says why."""

import json
import math
import shutil

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchifier import cache, datasets
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, TrainingConfig, update
from patchifier.nn.fast import FEW_CELLS, Convolution, UpConvolution, accelerate, keep_in_float32
from patchifier.nn.model import FeatureExtractor, Patchifier
from patchifier.train import finetune, loop, precision, pretrain
from patchifier.train.distributed import launch
from patchifier.train.precision import (
    Arithmetic,
    best_precision,
    decide,
    processor_has_bf16,
    settle,
)
from patchifier.train.run import Run
from patchifier.train.self_test import LAYER, SelfTest, Trial, examine, self_test
from tests.builders import TINY, close, normal, uniform

STAGE = {"steps": 3, "batch_size": 4}
CONFIG = update(
    Config(),
    {
        "model": TINY | {"embed_dim": 32, "mlp_dim": 64},
        "pretrain": {
            "stage_one": STAGE,
            "stage_two": STAGE,
            "validate_every": 100,
            "validation_fraction": 0.2,
            "n_patches": 8,
        },
    },
)
TEACHER = {"stages": "two", "objectives": ["contrast"]}
TARGETS = pytest.mark.parametrize("changes", [{}, TEACHER], ids=["paper", "teacher"])


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A cache of ten clips of noise of 8 s, which are of two kinds."""
    root, chance = tmp_path_factory.mktemp("precision"), np.random.default_rng(0)
    lines = ["path,target,split"]
    for number in range(10):
        noise = 0.1 * chance.standard_normal(22_050 * 8)
        soundfile.write(root / f"clip-{number}.wav", noise, 22_050)
        split = ("train", "train", "train", "valid", "test")[number // 2]
        lines.append(f"clip-{number}.wav,{('even', 'odd')[number % 2]},{split}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    data = datasets.load(root / "clips.csv")
    cache.prepare(data, root / "cache", config=CONFIG.spectrogram, workers=1)
    return root / "cache"


@pytest.fixture
def train(sounds, tmp_path):
    """Pre-train in a folder of this name, with changes of the pretrain section."""

    def run(name="run", changes=None, data=sounds, **options):
        config = update(CONFIG, {"pretrain": changes or {}})
        return pretrain.pretrain(data, tmp_path / name, config=config, device="cpu", **options)

    return run


@pytest.fixture
def tune(sounds, tmp_path):
    """Fine-tune in a folder of this name."""

    def run(name, start, *methods, data=sounds, **changes):
        training = {"training": {"steps": 2, "batch_size": 4}, "validate_every": 2}
        config = update(CONFIG, {"finetune": training | changes})
        out = tmp_path / name
        finetune.finetune(start, data, out, methods=list(methods), config=config, device="cpu")
        return facts(out)

    return run


def facts(out):
    return json.loads((out / "run.json").read_text())


@pytest.fixture
def has_bf16(monkeypatch):
    """A processor that multiplies bf16, whatever this one does, and no GPU."""
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class Faulty(TorchDispatchMode):
    """Operations of these names go wrong in bf16, below whoever looks at them."""

    def __init__(self, fault, *names):
        super().__init__()
        self.fault, self.names, self.calls = fault, names, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        named = func.name().split(".")[0].removeprefix("aten::") in self.names
        if named and isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16:
            self.calls += 1
            return self.fault(result, self.calls)
        return result


class Watching(TorchDispatchMode):
    """Call a function with the name and the arguments of each operation."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.see(func.name(), args)
        return func(*args, **(kwargs or {}))


def unstable(result, calls):
    return result * (1 + 2.0 ** -(7 - calls % 2))


def not_finite(result, calls):
    result = result.clone()
    result[(-1,) * result.ndim] = math.inf
    return result


def off_by_two_per_cent(result, calls):
    return (result.float() * 1.02).to(result.dtype)


FAULTS = pytest.mark.parametrize("fault", [unstable, not_finite, off_by_two_per_cent])


@pytest.mark.parametrize(
    ("has", "precisions"), [(True, ["bf16", "bf16", "32", "32"]), (False, ["32"] * 4)]
)
def test_the_processor_is_asked_what_it_multiplies(has, precisions, has_bf16, monkeypatch):
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: has)
    found = [best_precision(device) for device in ("auto", "cpu", "mps")]
    assert [*found, best_precision("cpu", "32")] == precisions


@pytest.mark.parametrize("wanted", ["auto", "32"])
def test_without_bf16_nothing_is_tested(wanted, has_bf16, monkeypatch):
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: wanted == "32")
    assert decide(wanted, "cpu", lambda: pytest.fail("tested")) == Arithmetic("32")


def matrices():
    return [normal(40, 30).bfloat16(), normal(30, 20, seed=1).bfloat16()]


def test_a_healthy_operation_passes():
    assert examine(torch.mm, matrices()) == ""


@FAULTS
def test_a_faulty_operation_is_refused(fault):
    calls = iter(range(100))

    def multiply(one, other):
        result = one @ other
        return fault(result, next(calls)) if result.dtype == torch.bfloat16 else result

    assert examine(multiply, matrices()) != ""


def test_one_bad_result_of_several_is_refused():
    def several(one, other):
        product = one @ other
        return product, product * (1.02 if one.dtype == torch.bfloat16 else 1), None

    assert examine(several, matrices()) != ""


def test_a_read_outside_its_own_memory_is_seen():
    """What an operation leaves out of its result is what was there before."""

    def leaves_out(one, other):
        result = torch.empty(400, 400, dtype=one.dtype)
        result[:-1] = 1.0
        return result.fill_(1.0) if one.dtype == torch.float32 else result

    assert examine(leaves_out, [torch.ones(400, 400).bfloat16(), torch.ones(1)]) != ""


def test_bad_numbers_in_the_data_are_no_fault_of_the_processor():
    one, other = matrices()
    one[3, 4] = math.nan
    assert examine(torch.mm, [one, other]) == ""


def trial():
    """Two steps of stage II."""
    patches, masked = uniform(4, 8, 1, 64, 32), torch.arange(8).expand(4, 8) % 4 > 0

    def loss(model, batch):
        return model.stage_two_loss(batch, batch, None, masked)

    return Trial(accelerate(Patchifier(CONFIG, seed=0)), loss, [patches] * 2)


def test_a_model_on_a_healthy_processor_passes():
    """What autocast computes in bf16 is as close as bf16 is, on this machine too."""
    verdict = self_test([trial()])
    assert not verdict.failed
    assert verdict.operations > 60


def test_forward_and_backward_of_each_kind_of_operation_are_looked_at():
    test = SelfTest()
    test.run(trial())
    found = {key[0].removeprefix("aten::") for key in test.reasons}
    assert {"convolution", "convolution_backward", "addmm", "mm"} <= found


@torch.no_grad()
def test_a_teacher_in_evaluation_mode_is_looked_at_too():
    class Taught(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = accelerate(Patchifier(CONFIG))
            self.weight = nn.Parameter(torch.ones(()))

        def train(self, mode=True):
            super().train(mode)
            self.teacher.eval()
            return self

        def loss(self):
            with torch.no_grad():
                return self.teacher.forward_encoder(patches)[-1].float().square().mean()

    patches = torch.rand(4, 8, 1, 64, 32)
    with torch.enable_grad():
        test = SelfTest()
        test.run(Trial(Taught().train(), lambda model, _: model.loss() * model.weight, [0]))
    assert {"aten::convolution", LAYER} <= {key[0] for key in test.reasons}
    assert all(not gradients for _, gradients, _ in test.reasons)


@FAULTS
@pytest.mark.parametrize("name", ["addmm", "mm"])
def test_a_faulty_product_fails_the_model(name, fault):
    with Faulty(fault, name) as faulty:
        verdict = self_test([trial()])
    assert faulty.calls
    assert verdict.failed
    assert verdict.refused[-1].startswith(f"{name} of (")


@FAULTS
def test_a_faulty_convolution_is_kept_in_float32(fault):
    tried = trial()
    with Faulty(fault, "convolution"):
        verdict = self_test([tried])
    assert verdict.refused
    assert not verdict.failed
    assert verdict.kernels
    for part in tried.module.modules():
        if isinstance(part, Convolution | UpConvolution):
            assert part.float32_only == (tuple(part.weight.shape) in verdict.kernels)
    with Faulty(fault, "convolution") as faulty:
        assert not SelfTest().run(tried)
    assert not faulty.calls, "one of them still computes in bf16"


def test_a_convolution_in_float32_computes_what_float32_does():
    for layer in (
        Convolution(3, 8, 3, stride=2, padding=1, bias=False),
        UpConvolution(3, 8, 3, padding=1),
        UpConvolution(3, 1, 3, padding=1),
    ):
        maps = torch.rand(5, 3, 8, 6)
        keep_in_float32(layer, [tuple(layer.weight.shape)])
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(maps.bfloat16().float())
        assert found.dtype == torch.float32
        assert torch.equal(found, layer(maps.bfloat16().float()))


@torch.no_grad()
def test_maps_of_few_cells_never_reach_a_bf16_convolution():
    """A kernel of oneDNN reads beside maps of 4 x 2 cells; in float32, evaluation is as it was."""
    extractor = accelerate(FeatureExtractor(Config())).eval()
    smallest = []
    for enabled in (True, False):
        seen = []

        def see(name, args, seen=seen):
            if name == "aten::convolution":
                seen.append(args[0].shape[-2:].numel())

        with Watching(see), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            extractor(torch.rand(6, 1, 64, 32))
        smallest.append(min(seen))
    assert smallest[0] > FEW_CELLS
    assert smallest[1] == 2


@pytest.mark.skipif(not processor_has_bf16(), reason="this processor has no bf16 arithmetic")
@torch.no_grad()
def test_the_papers_extractor_without_gradients_has_the_same_bits_each_time():
    extractor, patches = accelerate(FeatureExtractor(Config())).eval(), uniform(480, 1, 64, 32)
    exact, found = extractor(patches), []
    for fill in (math.nan, 3e38, -3e38, math.nan, 1.0):
        sizes = [480 * 2**number for number in range(8, 15)]
        blocks = [torch.full((size,), fill, dtype=torch.bfloat16) for size in sizes]
        del blocks
        with torch.autocast("cpu", torch.bfloat16):
            found.append(extractor(patches).float())
    assert all(torch.equal(found[0], other) for other in found)
    assert (found[0] - exact).norm() < 0.02 * exact.norm()


@TARGETS
def test_auto_takes_bf16_where_all_is_healthy_and_says_what_was_tested(
    changes, train, tmp_path, has_bf16
):
    weights = safetensors.torch.load_file(train(changes=changes) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
    found = facts(tmp_path / "run")
    test = found["precision test"]
    assert found["precision"] == test["precision"] == "bf16"
    assert test["operations"] > 60
    names = {"seconds", "refused", "float32 kernels", "processor", "amx", "torch", "threads"}
    assert names <= set(test)


@FAULTS
def test_auto_takes_float32_where_a_product_is_faulty_and_says_so(fault, train, tmp_path, has_bf16):
    shown = []

    with Faulty(fault, "mm"):
        train(progress=lambda title: lambda *report: shown.append((title, *report)))
    found = facts(tmp_path / "run")
    assert found["precision"] == "32"
    assert found["precision test"]["refused"][0].startswith("mm of (")
    announced, *counted, last = [report for title, *report in shown if title == precision.TITLE]
    assert announced[:2] == [0, 0]
    assert "once a run; if it takes long, --pretrain.precision 32 goes without it" in announced[2]
    assert counted[:2] == [[1, 0, "1 operation"], [2, 0, "2 operations"]]
    assert last[0] == last[1] == found["precision test"]["operations"]
    assert last[2].startswith("float32")


def test_a_run_in_float32_for_a_fault_is_the_run_that_asked_for_float32(train, tmp_path, has_bf16):
    """The self-test leaves no trace: neither in weights nor in chance."""
    with Faulty(not_finite, "mm"):
        refused = train("refused")
    asked = train("asked", {"precision": "32"})
    weights = [safetensors.torch.load_file(each / "model.safetensors") for each in (refused, asked)]
    close(*weights, atol=0)
    assert "precision test" not in facts(tmp_path / "asked")


def test_bf16_by_name_is_refused_where_it_is_faulty(train):
    message = r"mm of .*--pretrain.precision 32"
    with Faulty(off_by_two_per_cent, "mm"), pytest.raises(RequestError, match=message):
        train(changes={"precision": "bf16"})


def test_a_run_with_a_faulty_convolution_trains_in_bf16_and_is_resumed_so(
    train, tmp_path, has_bf16
):
    with Faulty(unstable, "convolution") as faulty:
        train()
        before, tested = facts(tmp_path / "run"), faulty.calls
        train(resume=True)
        assert faulty.calls == tested
    assert before["precision"] == "bf16"
    assert before["precision test"]["float32 kernels"]
    assert facts(tmp_path / "run")["precision test"] == before["precision test"]


def test_a_run_begun_in_bf16_is_not_resumed_on_a_processor_that_computes_it_wrongly(
    tmp_path, has_bf16, monkeypatch
):
    def begin(trials, resume=True):
        with Run(tmp_path / "run", Config(), resume=resume) as run:
            return settle(run, "auto", "cpu", trials, flag="precision").precision

    assert begin(lambda: [trial()], resume=False) == "bf16"
    with Faulty(unstable, "mm"):
        assert begin(lambda: pytest.fail("tested again")) == "bf16"
    monkeypatch.setattr(precision, "processor", lambda: "another one")
    assert begin(lambda: [trial()]) == "bf16"
    with Faulty(unstable, "mm"), pytest.raises(RequestError, match="began in bf16"):
        begin(lambda: [trial()])


def test_fine_tuning_is_tested_with_its_own_operations(train, tune, has_bf16):
    start = train(changes={"precision": "32"})
    assert tune("healthy", start, "full", "linear-probe")["precision"] == "bf16"
    with Faulty(off_by_two_per_cent, "addmm"):
        found = tune("faulty", start, "full")
    assert found["precision"] == "32"
    assert found["precision test"]["refused"]


@TARGETS
def test_validation_is_in_float32(changes, sounds, tmp_path):
    config = update(CONFIG, {"pretrain": changes})
    data = Cache(sounds).require(config.spectrogram)
    splits = pretrain.split(data, config.pretrain)
    batches = pretrain.Batches(data, splits.slices, config, "two", config.pretrain.stage_two)
    module = pretrain.stage_module("two", Patchifier(config), batches, config)
    seen, validating = [], []
    validator = pretrain.validator("two", data, splits, config)

    def see(name, args):
        if validating:
            seen.extend(tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor))

    def validate(model):
        validating.append(True)
        figures = validator(model)
        validating.clear()
        return figures

    loss = pretrain.stage_loss("two", config.pretrain)
    job = loop.TrainTask(module, len(splits.train), batches, loss, validate)
    fabric, training = launch("cpu", precision="bf16"), TrainingConfig(steps=1, batch_size=4)
    with Watching(see):
        loop.fit(job, tmp_path, config=training, seed=0, validate_every=1, fabric=fabric)
    assert torch.float32 in seen
    assert torch.bfloat16 not in seen


@pytest.fixture
def damaged(sounds, tmp_path):
    """A copy of the cache, with NaN in the middle of a clip that trains, and the clip's id."""
    own = shutil.copytree(sounds, tmp_path / "own")
    data = Cache(own)
    name = data.clips[int(pretrain.split(data, CONFIG.pretrain).train[2])].id
    for table in (own / "shards").glob("*.jsonl"):  # a shard is also closed after some seconds
        for row in map(json.loads, table.read_text().splitlines()):
            if row["clip"] == name:
                shard = np.load(table.with_suffix(".npy"), mmap_mode="r+")
                shard[row["first"] : row["first"] + row["frames"], 5] = np.nan
                shard.flush()
    return own, name, [clip.id for clip in data.clips]


@pytest.mark.parametrize(
    "changes",
    [{}, {"stages": "two", "objectives": ["pixels", "timbre", "contrast"]}],
    ids=["paper", "objectives"],
)
def test_a_clip_that_is_not_a_number_is_named(changes, damaged, train):
    own, name, clips = damaged
    steps = {"steps": 20, "batch_size": 2}
    config = {"precision": "32", "stage_one": steps, "stage_two": steps} | changes
    with pytest.raises(RequestError, match=r"at step .*in float32") as refused:
        train(changes=config, data=own)
    bad = str(refused.value).split("not finite: ")[1]
    assert bad.startswith(f"{name} (row {clips.index(name)}):")
    assert "shards/0000" in bad
    assert [clip for clip in clips if f"{clip} (row" in bad] == [name]


@pytest.mark.parametrize("wanted", ["32", "bf16"])
def test_weights_that_break_without_a_bad_clip_are_told_apart(wanted, train):
    stage = {"steps": 20, "batch_size": 4, "learning_rate": 1e30}
    with pytest.raises(RequestError) as refused:
        train(changes={"precision": wanted, "stage_one": stage})
    message = str(refused.value)
    for part in ("log-mels are finite", "learning_rate (1e+30)", "max_grad_norm"):
        assert part in message
    assert ("precision 32" in message) == (wanted == "bf16")
    assert message.count("(row ") == 4


def test_a_gradient_that_is_not_a_number_stops_the_run_where_it_is_measured(tmp_path):
    """The loss is finite, its gradient is not."""

    def loss(model, step):
        return torch.sqrt(model.weight * 0).sum()

    def describe(step):
        return f"It was batch {step}."

    job = loop.TrainTask(nn.Linear(1, 1), 4, lambda step: step, loss, describe=describe)
    config = TrainingConfig(steps=3, batch_size=1, max_grad_norm=1.0)
    message = r"gradient is nan at step 1, in float32\. It was batch 0\."
    with pytest.raises(RequestError, match=message):
        loop.fit(job, tmp_path, config=config, seed=0, validate_every=9)


@pytest.mark.parametrize("method", ["full", "linear-probe"])
def test_a_bad_clip_is_named_in_fine_tuning(method, damaged, tune):
    own, name, clips = damaged
    start = Checkpoint(Patchifier(CONFIG), CONFIG)
    message = rf"not finite: {name} \(row {clips.index(name)}\)"
    training = {"training": {"steps": 20, "batch_size": 4}, "precision": "32"}
    with pytest.raises(RequestError, match=message):
        tune("tuned", start, method, data=own, **training, validate_every=20)

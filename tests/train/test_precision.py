"""Arithmetic of training: bf16 only where a self-test of the model's own operations passes; and a loss that is not a number says why."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchifier import cache, datasets
from patchifier.cache import Cache
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

SETTINGS = {
    "model": {
        "channels": [4, 4, 4, 4, 8],
        "embed_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_dim": 64,
    },
    "pretrain": {
        "stage_one": {"steps": 3, "batch_size": 4},
        "stage_two": {"steps": 3, "batch_size": 4},
        "validate_every": 100,
        "validation_fraction": 0.2,
        "n_patches": 8,
    },
}
TEACHER = {"pretrain": {"stages": "two", "objectives": ["latent", "contrast"]}}
CONFIG = update(Config(), SETTINGS)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A cache of ten clips of noise of 8 s, which are of two kinds."""
    root, chance = tmp_path_factory.mktemp("precision"), np.random.default_rng(0)
    (root / "audio").mkdir()
    lines = ["path,target,split"]
    for number in range(10):
        soundfile.write(
            root / "audio" / f"clip-{number}.wav", 0.1 * chance.standard_normal(22_050 * 8), 22_050
        )
        lines.append(
            f"audio/clip-{number}.wav,{'even' if number % 2 == 0 else 'odd'},{('train', 'train', 'train', 'valid', 'test')[number // 2]}"
        )
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    cache.prepare(
        datasets.load(root / "clips.csv"), root / "cache", config=CONFIG.spectrogram, workers=1
    )
    return root / "cache"


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
        if (
            func.name().split(".")[0].removeprefix("aten::") in self.names
            and isinstance(result, torch.Tensor)
            and result.dtype == torch.bfloat16
        ):
            self.calls += 1
            return self.fault(result, self.calls)
        return result


def unstable(result, calls):
    return result * (1 + 2.0 ** -(7 - calls % 2))


def not_finite(result, calls):
    result = result.clone()
    result[(-1,) * result.ndim] = math.inf
    return result


def off_by_two_per_cent(result, calls):
    return (result.float() * 1.02).to(result.dtype)


FAULTS = pytest.mark.parametrize("fault", [unstable, not_finite, off_by_two_per_cent])


# --- which arithmetic ---


def test_the_processor_is_asked_what_it_multiplies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, expected in ((True, "bf16"), (False, "32")):
        monkeypatch.setattr(precision, "processor_has_bf16", lambda has=has: has)
        assert best_precision("auto") == best_precision("cpu") == expected
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: True)
    assert best_precision("mps") == "32"
    assert best_precision("cpu", "32") == "32"


@pytest.mark.parametrize("wanted", ["auto", "32"])
def test_without_bf16_nothing_is_tested(wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: wanted == "32")
    assert decide(wanted, "cpu", lambda: pytest.fail("tested")) == Arithmetic("32")


# --- one operation ---


def matrices():
    chance = torch.Generator().manual_seed(0)
    return [
        torch.randn(40, 30, generator=chance).bfloat16(),
        torch.randn(30, 20, generator=chance).bfloat16(),
    ]


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
    assert (
        examine(
            lambda one, other: (
                one @ other,
                (one @ other) * (1.02 if one.dtype == torch.bfloat16 else 1),
                None,
            ),
            matrices(),
        )
        != ""
    )


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


# --- all operations of a model ---


def trial(config=CONFIG, seed=0):
    """Two steps of stage II."""
    patches = torch.rand(4, 8, 1, 64, 32, generator=torch.Generator().manual_seed(seed))
    masked = torch.arange(8).expand(4, 8) % 4 > 0
    return Trial(
        accelerate(Patchifier(config, seed=seed)),
        lambda model, batch: model.stage_two_loss(batch, batch, None, masked),
        [patches] * 2,
    )


def test_a_model_on_a_healthy_processor_passes():
    """What autocast computes in bf16 is as close as bf16 is, on this machine too."""
    result = self_test([trial()])
    assert not result.failed
    assert result.operations > 60


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
        result = self_test([trial()])
    assert faulty.calls
    assert result.failed
    assert result.refused[-1].startswith(f"{name} of (")


@FAULTS
def test_a_faulty_convolution_is_kept_in_float32(fault):
    tried = trial()
    with Faulty(fault, "convolution"):
        result = self_test([tried])
    assert result.refused
    assert not result.failed
    assert result.kernels
    for part in tried.module.modules():
        if isinstance(part, Convolution | UpConvolution):
            assert part.float32_only == (tuple(part.weight.shape) in result.kernels)
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


# --- maps of few cells ---


@torch.no_grad()
def test_maps_of_few_cells_never_reach_a_bf16_convolution():
    """A kernel of oneDNN reads beside maps of 4 x 2 cells; in float32, evaluation is as it was."""
    extractor, patches = (
        accelerate(FeatureExtractor(Config())).eval(),
        torch.rand(6, 1, 64, 32),
    )
    seen = []

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "aten::convolution":
                seen.append(args[0])
            return func(*args, **(kwargs or {}))

    with Convolutions(), torch.autocast("cpu", torch.bfloat16):
        extractor(patches)
    assert min(maps.shape[-2:].numel() for maps in seen) > FEW_CELLS
    seen.clear()
    with Convolutions():
        extractor(patches)
    assert min(maps.shape[-2:].numel() for maps in seen) == 2


@pytest.mark.skipif(not processor_has_bf16(), reason="this processor has no bf16 arithmetic")
@torch.no_grad()
def test_the_papers_extractor_without_gradients_has_the_same_bits_each_time():
    extractor = accelerate(FeatureExtractor(Config())).eval()
    patches = torch.rand(480, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    exact, found = extractor(patches), []
    for fill in (math.nan, 3e38, -3e38, math.nan, 1.0):
        blocks = [
            torch.full((480 * 2**number,), fill, dtype=torch.bfloat16) for number in range(8, 15)
        ]
        del blocks
        with torch.autocast("cpu", torch.bfloat16):
            found.append(extractor(patches).float())
    assert all(torch.equal(found[0], other) for other in found)
    assert (found[0] - exact).norm() < 0.02 * exact.norm()


# --- runs ---


def facts(out):
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("changes", [{}, TEACHER], ids=["paper", "teacher"])
def test_auto_takes_bf16_where_all_is_healthy_and_says_what_was_tested(
    changes, sounds, tmp_path, has_bf16
):
    pretrain.pretrain(sounds, tmp_path / "run", config=update(CONFIG, changes), device="cpu")
    test = facts(tmp_path / "run")["precision test"]
    assert facts(tmp_path / "run")["precision"] == test["precision"] == "bf16"
    assert test["operations"] > 60
    assert {"seconds", "refused", "float32 kernels", "processor", "amx", "torch", "threads"} <= set(
        test
    )


@FAULTS
def test_auto_takes_float32_where_a_product_is_faulty_and_says_so(
    fault, sounds, tmp_path, has_bf16
):
    said = []
    with Faulty(fault, "mm"):
        pretrain.pretrain(
            sounds,
            tmp_path / "run",
            config=CONFIG,
            device="cpu",
            progress=lambda title: (
                lambda done, total, note: said.append((title, done == total, note))
            ),
        )
    found = facts(tmp_path / "run")
    assert found["precision"] == "32"
    assert found["precision test"]["refused"][0].startswith("mm of (")
    assert [
        note
        for title, last, note in said
        if title == "test of bf16" and last and note.startswith("float32")
    ]


def test_a_run_in_float32_for_a_fault_is_the_run_that_asked_for_float32(sounds, tmp_path, has_bf16):
    """The self-test leaves no trace: neither in weights nor in chance."""
    with Faulty(not_finite, "mm"):
        refused = pretrain.pretrain(sounds, tmp_path / "refused", config=CONFIG, device="cpu")
    asked = pretrain.pretrain(
        sounds,
        tmp_path / "asked",
        config=update(CONFIG, {"pretrain": {"precision": "32"}}),
        device="cpu",
    )
    one, other = (
        safetensors.torch.load_file(model / "model.safetensors") for model in (refused, asked)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "precision test" not in facts(tmp_path / "asked")


def test_bf16_by_name_is_refused_where_it_is_faulty(sounds, tmp_path):
    with (
        Faulty(off_by_two_per_cent, "mm"),
        pytest.raises(RequestError, match=r"mm of .*--pretrain.precision 32"),
    ):
        pretrain.pretrain(
            sounds,
            tmp_path / "run",
            config=update(CONFIG, {"pretrain": {"precision": "bf16"}}),
            device="cpu",
        )


def test_a_run_with_a_faulty_convolution_trains_in_bf16_and_is_resumed_so(
    sounds, tmp_path, has_bf16
):
    with Faulty(unstable, "convolution") as faulty:
        pretrain.pretrain(sounds, tmp_path / "run", config=CONFIG, device="cpu")
        test = facts(tmp_path / "run")["precision test"]
        assert facts(tmp_path / "run")["precision"] == "bf16"
        assert test["float32 kernels"]
        tested = faulty.calls
        pretrain.pretrain(sounds, tmp_path / "run", config=CONFIG, device="cpu", resume=True)
        assert faulty.calls == tested
    assert facts(tmp_path / "run")["precision test"] == test


def test_a_run_begun_in_bf16_is_not_resumed_on_a_processor_that_computes_it_wrongly(
    tmp_path, has_bf16, monkeypatch
):
    with Run(tmp_path / "run", Config()) as run:
        assert settle(run, "auto", "cpu", lambda: [trial()], flag="precision").precision == "bf16"
    with Faulty(unstable, "mm"), Run(tmp_path / "run", Config(), resume=True) as run:
        assert (
            settle(
                run, "auto", "cpu", lambda: pytest.fail("tested again"), flag="precision"
            ).precision
            == "bf16"
        )
    monkeypatch.setattr(precision, "processor", lambda: "another one")
    with Run(tmp_path / "run", Config(), resume=True) as run:
        assert settle(run, "auto", "cpu", lambda: [trial()], flag="precision").precision == "bf16"
    with (
        Faulty(unstable, "mm"),
        pytest.raises(RequestError, match="began in bf16"),
        Run(tmp_path / "run", Config(), resume=True) as run,
    ):
        settle(run, "auto", "cpu", lambda: [trial()], flag="precision")


def test_fine_tuning_is_tested_with_its_own_operations(sounds, tmp_path, has_bf16):
    start = pretrain.pretrain(
        sounds,
        tmp_path / "run",
        config=update(CONFIG, {"pretrain": {"precision": "32"}}),
        device="cpu",
    )
    config = update(
        CONFIG, {"finetune": {"training": {"steps": 2, "batch_size": 4}, "validate_every": 2}}
    )
    finetune.finetune(
        start,
        sounds,
        tmp_path / "healthy",
        methods=["full", "linear-probe"],
        config=config,
        device="cpu",
    )
    assert facts(tmp_path / "healthy")["precision"] == "bf16"
    with Faulty(off_by_two_per_cent, "addmm"):
        finetune.finetune(
            start, sounds, tmp_path / "faulty", methods=["full"], config=config, device="cpu"
        )
    assert facts(tmp_path / "faulty")["precision"] == "32"
    assert facts(tmp_path / "faulty")["precision test"]["refused"]


@pytest.mark.parametrize("changes", [{}, TEACHER], ids=["paper", "teacher"])
def test_validation_is_in_float32(changes, sounds, tmp_path):
    config = update(CONFIG, changes)
    data = Cache(sounds).require(config.spectrogram)
    splits = pretrain.split(data, config.pretrain)
    batches = pretrain.Batches(data, splits.slices, config, "two", config.pretrain.stage_two)
    module = pretrain.stage_module("two", Patchifier(config), batches, config)
    seen = []

    class Types(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if validating:
                seen.extend(tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor))
            return func(*args, **(kwargs or {}))

    def validate(model):
        validating.append(True)
        figures = validator(model)
        validating.clear()
        return figures

    validating, validator = [], pretrain.validator("two", data, splits, config)
    job = loop.TrainTask(
        module,
        len(splits.train),
        batches,
        pretrain.stage_loss("two", config.pretrain),
        validate,
    )
    fabric = launch("cpu", precision="bf16")
    with Types():
        loop.fit(
            job,
            tmp_path,
            config=TrainingConfig(steps=1, batch_size=4),
            seed=0,
            validate_every=1,
            fabric=fabric,
        )
    assert torch.float32 in seen
    assert torch.bfloat16 not in seen


# --- a loss that is not a number ---


@pytest.fixture
def own(sounds, tmp_path):
    """A copy of the cache with one shard, to be damaged."""
    import shutil

    shutil.copytree(sounds, tmp_path / "own")
    return tmp_path / "own"


def plant(path, name):
    """Put NaN in the middle of a clip."""
    rows = [json.loads(line) for line in (path / "shards" / "00000.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["clip"] == name]
    shard = np.load(path / "shards" / "00000.npy")
    shard[row["first"] : row["first"] + row["frames"], 5] = np.nan
    np.save(path / "shards" / "00000.npy", shard)


def number_of(data, name):
    return [clip.id for clip in data.clips].index(name)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pretrain": {"stages": "two", "objectives": ["pixels", "timbre", "contrast"]}}],
    ids=["paper", "targets"],
)
def test_a_clip_that_is_not_a_number_is_named(changes, own, tmp_path):
    data = Cache(own)
    name = data.clips[int(pretrain.split(data, CONFIG.pretrain).train[2])].id
    plant(own, name)
    steps = {"steps": 20, "batch_size": 2}
    config = update(
        update(CONFIG, {"pretrain": {"precision": "32", "stage_one": steps, "stage_two": steps}}),
        changes,
    )
    with pytest.raises(RequestError) as refused:
        pretrain.pretrain(own, tmp_path / "run", config=config, device="cpu")
    message = str(refused.value)
    bad = message.split("not finite: ")[1]
    assert bad.startswith(f"{name} (row {number_of(data, name)}):")
    assert "shards/00000" in bad
    assert "at step" in message
    assert "in float32" in message
    others = [clip.id for clip in data.clips if clip.id != name and f"{clip.id} (row" in bad]
    assert not others


@pytest.mark.parametrize("wanted", ["32", "bf16"])
def test_weights_that_break_without_a_bad_clip_are_told_apart(wanted, sounds, tmp_path):
    stage = {"steps": 20, "batch_size": 4, "learning_rate": 1e30}
    config = update(CONFIG, {"pretrain": {"precision": wanted, "stage_one": stage}})
    with pytest.raises(RequestError) as refused:
        pretrain.pretrain(sounds, tmp_path / "run", config=config, device="cpu")
    message = str(refused.value)
    assert "log-mels are finite" in message
    assert "learning_rate (1e+30)" in message
    assert "max_grad_norm" in message
    assert ("precision 32" in message) == (wanted == "bf16")
    assert message.count("(row ") == 4


def test_a_gradient_that_is_not_a_number_stops_the_run_where_it_is_measured(tmp_path):
    """The loss is finite, its gradient is not."""
    model = nn.Linear(1, 1)

    def loss(model, step):
        return torch.sqrt(model.weight * 0).sum()

    job = loop.TrainTask(
        model, 4, lambda step: step, loss, describe=lambda step: f"It was batch {step}."
    )
    with pytest.raises(
        RequestError, match=r"gradient is nan at step 1, in float32\. It was batch 0\."
    ):
        loop.fit(
            job,
            tmp_path,
            config=TrainingConfig(steps=3, batch_size=1, max_grad_norm=1.0),
            seed=0,
            validate_every=9,
        )


def test_a_bad_clip_is_named_in_fine_tuning(own, sounds, tmp_path):
    start = pretrain.pretrain(
        sounds,
        tmp_path / "run",
        config=update(CONFIG, {"pretrain": {"precision": "32"}}),
        device="cpu",
    )
    data = Cache(own)
    plant(own, data.clips[0].id)
    config = update(
        CONFIG,
        {
            "finetune": {
                "training": {"steps": 20, "batch_size": 4},
                "validate_every": 20,
                "precision": "32",
            }
        },
    )
    for method in ("full", "linear-probe"):
        with pytest.raises(RequestError, match=rf"not finite: {data.clips[0].id} \(row 0\)"):
            finetune.finetune(
                start, own, tmp_path / method, methods=[method], config=config, device="cpu"
            )

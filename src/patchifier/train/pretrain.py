"""Pre-training in two stages (paper 4.2): autoencode single patches; then fill in masked ones.

A run folder: ``stage-one/`` and ``stage-two/`` (metrics, validation, state), ``model/`` (the
result), ``config.json``, ``run.json``.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from patchifier import checkpoint, weights
from patchifier.cache import Cache
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, PretrainConfig, RequestError, digest
from patchifier.datasets.splits import Splits, pretraining_splits
from patchifier.io import ProgressOf, silent_of
from patchifier.nn.encode import model_hash
from patchifier.nn.fast import accelerate, keep_in_float32
from patchifier.nn.model import Patchifier
from patchifier.nn.pooling import require_embed, require_whitening
from patchifier.train import precision
from patchifier.train.batches import Batch, Batches, require_groups
from patchifier.train.checkpointer import resumption
from patchifier.train.distributed import (
    expected_rank_slice,
    launch,
    rank_slice,
    require_devices,
    require_even,
)
from patchifier.train.loop import TrainTask, fit
from patchifier.train.note_labels import note_labels
from patchifier.train.objectives import (
    PIXELS,
    Objectives,
    distil_weights,
    frozen_modules,
    require_targets,
    trained_estimators,
)
from patchifier.train.optimiser import bf16_optimiser, extractor_rates
from patchifier.train.pictures import write_reconstructions
from patchifier.train.run import Run, is_first
from patchifier.train.self_test import Trial
from patchifier.train.teacher import teacher_features
from patchifier.train.validation import no_op_validator, training_statistics, validator
from patchifier.train.whitening import examples_of, fit_whitening

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps of a stage in the self-test of bf16: where clips are short, batches differ in shape.
TRIAL_STEPS = 2
# modules that learn, by stage (4.2)
TRAINED = {
    "one": ("extractor", "decoder"),
    "two": ("extractor", "bottleneck", "predictor", "align", "decoder"),
}


def pretrain(
    cache: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: ProgressOf = silent_of,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Pre-train a Patchifier on a cache of log-mels.

    Parameters
    ----------
    cache : str or Path
        From :func:`patchifier.cache.prepare`.
    out : str or Path
        Run folder; with several machines, on a file system that all see.
    config : Config
        The paper's setting by default. Its spectrogram section must be the cache's.
    init : str or Path
        Model folder to start from.
    resume : bool
        Go on with the run in `out`, with as many devices as there are now.
    device : str
        "auto", "cpu", "cuda", ...
    devices, nodes : int
        Devices on each machine, and machines; see :func:`patchifier.train.distributed.launch`.
    progress : callable
        Given a stage's title, returns a function that shows its progress.
    say : callable
        Given a line about the steps to come (:func:`plan`), before anything
        long begins.

    Returns
    -------
    Path
        The model folder.

    Raises
    ------
    RequestError
        If cache, config and initial model do not fit together, there are too few clips, or devices
        that cannot share a batch.
    Interrupted
        After SIGINT or SIGTERM; go on with `resume`.

    Examples
    --------
    Two steps of a small model in each stage:

    >>> from patchifier.config import update
    >>> small = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 1, "n_heads": 2}
    >>> short = {"stage_one": {"steps": 2}, "stage_two": {"steps": 2}, "precision": "32"}
    >>> config = update(Config(), {"model": small, "pretrain": short})
    >>> folder = pretrain("demo-cache", "runs/pretrain", config=config, device="cpu")
    >>> patchifier.load(folder).size
    32
    """
    config = config or Config()
    require_devices(device, devices=devices, nodes=nodes)
    require_targets(config)  # before stage I, which does without
    data = Cache(cache, partial=config.pretrain.n_cache_parts > 1).require(config.spectrogram)
    for training in (config.pretrain.stage_one, config.pretrain.stage_two):
        # before other processes start, which would raise it too
        require_even(training.batch_size, devices * nodes)
    require_embed(config)
    require_whitening(config)
    model = initial_model(config, init)
    splits = split(data, config.pretrain)
    if config.pretrain.pairs:
        require_groups(data, splits.train)
    facts = {
        "kind": "pretrain",
        "cache": str(data.path.resolve()),
        "dataset": data.name,
        "clips": {"train": len(splits.train), "validation": len(splits.valid)},
        "parameters": model.parameter_count(),
        "seed": config.pretrain.seed,
        "music": digest(list(data.keys)),
        "hours": round(data.hours, 3),
    }
    if config.pretrain.pairs:
        facts["groups"] = digest([clip.group for clip in data.clips])
    if init is not None:
        facts |= {
            "init": str(weights.find(init).resolve()),
            "init weights": model_hash(checkpoint.load(init).model),
        }
    with Run(out, config, resume=resume, facts=facts) as run:
        say(resumption(run.path, began=bool(run.before)) + plan(config.pretrain, len(splits.train)))
        arithmetic = precision.settle(
            run,
            config.pretrain.precision,
            device,
            lambda: trials(model, data, splits, config, devices=devices, nodes=nodes),
            flag="pretrain.precision",
            progress=progress(precision.TITLE),
        )
        fabric = launch(device, devices=devices, nodes=nodes, precision=arithmetic.precision)
        keep_in_float32(model, precision.agree(fabric, run, arithmetic).kernels)
        run.facts["processes"] = fabric.world_size
        for stage in ("one", "two"):
            if config.pretrain.stages in ("both", stage):
                module = train_stage(
                    stage,
                    model,
                    data,
                    splits,
                    config,
                    run,
                    fabric=fabric,
                    resume=resume,
                    progress=progress,
                )
        if is_first():
            model.cpu()
            if config.pretrain.stages != "one":
                file = run.path / "stage-two" / "reconstructions.safetensors"
                kriging = training_statistics(data, splits.slices[0], config).kriging
                write_reconstructions(file, model, data, splits.valid, config, kriging=kriging)
            if config.embed.whiten:  # of the first part alone: this machine may have no other
                examples = examples_of(data, splits.slices[0])
                fit_whitening(model, config, examples, distil_weights(module))
            names = ("dataset", "clips", "seed", "init", "command", "machine", "started")
            described = {name: run.facts[name] for name in names if name in run.facts}
            steps = stage_steps(config.pretrain, len(splits.train))
            described |= {f"steps, stage {stage}": number for stage, number in steps.items()}
            checkpoint.save(run.path / "model", Checkpoint(model, config, facts=described))
            run.facts["model weights"] = model_hash(model)
    return run.path / "model"


def stage_steps(config: PretrainConfig, clips: int) -> dict[str, int]:
    """Optimiser steps of each stage that runs."""
    stages = {"one": config.stage_one, "two": config.stage_two}
    return {
        name: training.total_steps(clips)
        for name, training in stages.items()
        if config.stages in ("both", name)
    }


def plan(config: PretrainConfig, clips: int) -> str:
    """Say how many steps each stage takes, and how many passes through the clips that is.

    Examples
    --------
    >>> plan(PretrainConfig(stages="one"), 5000)
    '5,000 training clips; stage I: 156,250 steps of 32 clips, 1,000 passes'
    """
    parts = []
    for stage, steps in stage_steps(config, clips).items():
        training = config.stage_one if stage == "one" else config.stage_two
        passes = steps * training.batch_size / clips
        counted = f"{passes:,.0f}" if passes >= 10 else f"{passes:.1f}"
        parts.append(
            f"stage {'I' if stage == 'one' else 'II'}: {steps:,} steps of {training.batch_size} "
            f"clips, {counted} passes"
        )
    return "; ".join([f"{clips:,} training clips", *parts])


def split(data: Cache, config: PretrainConfig) -> Splits:
    """Choose training and validation clips, and divide training clips among parts of the cache."""
    parts = data.parts(config.n_cache_parts)
    return pretraining_splits(data.clips, config, parts=parts, where=f"cache {data.path}")


def initial_model(config: Config, init: str | Path | None) -> Patchifier:
    """Make a model by the seed, or take one from a folder.

    No estimator of it may stay as it was drawn.
    """
    loaded = None if init is None else checkpoint.load(init)
    known = set[str](loaded.config.model.estimators if loaded else ())
    if config.pretrain.stages != "one":
        known |= trained_estimators(config)
    for estimator in config.model.estimators:
        if estimator not in known:
            raise RequestError(
                f"model.estimators holds {estimator!r}, which nothing trains: add it or "
                f"known_{estimator} to pretrain.objectives of stage II, start from a model that "
                "has it, or leave it out."
            )
    if loaded is None:
        return accelerate(Patchifier(config, seed=config.pretrain.seed))
    differ = []
    for section in ("model", "spectrogram"):
        ours, theirs = getattr(config, section), getattr(loaded.config, section)
        names = [field.name for field in dataclasses.fields(ours) if field.name != "estimators"]
        same = (getattr(ours, name) == getattr(theirs, name) for name in names)
        differ += [f"{section}.{name}" for name, alike in zip(names, same) if not alike]
    if set(loaded.config.model.estimators) - set(config.model.estimators):  # new ones may be added
        differ.append("model.estimators")
    if differ:
        raise RequestError(
            f"the model in {init} differs from the config in {', '.join(differ)}: give the "
            "config.json of that model as --config."
        )
    model = accelerate(Patchifier(config, seed=config.pretrain.seed))
    for name, part in loaded.model.named_children():
        if name != "readout":
            model.get_submodule(name).load_state_dict(
                part.state_dict(), strict=name != "estimators"
            )
    return model


def train_stage(
    stage: str,
    model: Patchifier,
    data: Cache,
    splits: Splits,
    config: Config,
    run: Run,
    *,
    fabric: "Fabric",
    resume: bool,
    progress: ProgressOf,
) -> nn.Module:
    """Train stage "one" or "two" and write its log and checkpoints into the run folder.

    Returns the model, or the :class:`Objectives` around it.
    """
    settings = config.pretrain
    training = settings.stage_one if stage == "one" else settings.stage_two
    part, device = rank_slice(fabric, training.batch_size), fabric.device
    batches = Batches(data, splits.slices, config, stage, training, device=device, rank_slice=part)
    validate = None
    if len(splits.valid):
        validate = validator(stage, data, splits, config) if is_first() else no_op_validator
    module = stage_module(stage, model, batches, config)
    job = TrainTask(
        module,
        clips=len(splits.train),
        batch=batches,
        loss=stage_loss(stage, settings),
        learning_rates=extractor_rates(settings) if stage == "two" else {},
        validate=validate,
        describe=batches.describe,
    )
    fit(
        job,
        run.path / f"stage-{stage}",
        config=training,
        seed=settings.seed,
        validate_every=settings.validate_every
        or max(50, -(-len(splits.train) // training.batch_size)),
        fabric=fabric,
        checkpoint_every_s=settings.checkpoint_every_s,
        resume=resume,
        progress=progress(f"stage {'I' if stage == 'one' else 'II'}"),
        keep_time=run.keep_time,
    )
    model.requires_grad_(True)
    return module


def trials(
    model: Patchifier,
    data: Cache,
    splits: Splits,
    config: Config,
    *,
    devices: int = 1,
    nodes: int = 1,
) -> Iterator[Trial]:
    """First steps of each stage on copies of the model, for the self-test of bf16."""
    for stage, training in (("one", config.pretrain.stage_one), ("two", config.pretrain.stage_two)):
        if config.pretrain.stages in ("both", stage):
            part = expected_rank_slice(training.batch_size, devices=devices, nodes=nodes)
            batches = Batches(data, splits.slices, config, stage, training, rank_slice=part)
            module = stage_module(stage, copy.deepcopy(model), batches, config, examples=1)
            steps = [batches(step) for step in range(TRIAL_STEPS)]
            loss, optimiser = stage_loss(stage, config.pretrain), bf16_optimiser(module, training)
            yield Trial(module, loss, steps, optimiser)


def stage_module(
    stage: str, model: Patchifier, batches: Batches, config: Config, *, examples: int | None = None
) -> nn.Module:
    """Switch on what a stage trains of a model.

    With several targets, the model comes in a :class:`Objectives`. Targets are standardised by that
    many batches of examples; by all there are, if it is None.
    """
    several = stage == "two" and config.pretrain.objectives != (PIXELS,)
    frozen: tuple[str, ...] = frozen_modules(config) if several else ()
    if stage == "two" and not config.pretrain.extractor_lr_scale:
        frozen = (*frozen, "extractor")
    for name, part in model.named_children():
        part.requires_grad_(name in TRAINED[stage] and name not in frozen)
    for name, part in (model.estimators or {}).items():
        part.requires_grad_(several and name in trained_estimators(config))
    if not several:
        return model
    labels = note_labels(batches.data, batches.parts, config)
    features = teacher_features(batches.data, batches.parts, config, labels)
    shown = itertools.islice(batches.examples(), examples)
    return Objectives(model, config, shown, features, labels)


def stage_loss(stage: str, settings: PretrainConfig) -> Callable[[nn.Module, Batch], Tensor]:
    """Make the loss of a stage: MSE of patches autoencoded, or predicted.

    Or that of :class:`Objectives`.
    """

    def loss_one(model: Any, batch: Batch) -> Tensor:
        return batch.weight * model.stage_one_loss(batch.patches, batch.target, batch.valid)

    def loss_two(model: Any, batch: Batch) -> Tensor:
        if settings.objectives != (PIXELS,):
            return model.stage_two_loss(batch)
        return batch.weight * model.stage_two_loss(
            batch.patches,
            batch.target,
            batch.valid,
            batch.mask,
            extract=settings.extracted_patches,
            loss_mask=batch.loss_mask,
        )

    return loss_one if stage == "one" else loss_two

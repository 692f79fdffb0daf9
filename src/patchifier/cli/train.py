"""Commands that train: pretrain, finetune, watch."""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from patchifier.cli.command import Outcome, Overrides, say
from patchifier.cli.evaluate import results_table
from patchifier.cli.progress import progress
from patchifier.config import (
    AugmentConfig,
    Config,
    EmbedConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    TrainingConfig,
    to_dict,
    update,
)

METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full")


def pretrain(
    cache: str,
    *,
    out: str,
    init: str = "",
    stage: Literal["one", "two", "both"] | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    changes: Annotated[Overrides, ModelConfig, AugmentConfig, PretrainConfig, EmbedConfig],
) -> Outcome | None:
    """Learn from unlabelled music, in two stages.

    Numbers in brackets, such as (4.4), are sections of the paper.

    Parameters
    ----------
    cache : str
        From 'patchifier prepare'.
    out : str
        Run folder.
    init : str
        Model folder or bundled model to start from; its config is then the default.
    stage : str
        Short for --pretrain.stages.
    resume : bool
        Continue the run in --out.
    device : str
        auto, cpu, cuda, mps.
    devices : int
        Devices to share each batch, one process each. torchrun and SLURM bring their own number.
    nodes : int
        Machines; start the same command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set.
    changes : Overrides
        Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.

    Examples
    --------
    Train the recipe of patchifier-base on a cache; about an hour on one core:
        $ patchifier pretrain cache --out run --config self-supervised

    Go on after an interruption:
        $ patchifier pretrain cache --out run --config self-supervised --resume

    Change one number of the paper:
        $ patchifier pretrain cache --out half --pretrain.mask_ratio 0.5
    """
    from patchifier.io import silent
    from patchifier.train import pretrain
    from patchifier.train.run import Interrupted, is_first

    config = changes.apply(_base(cache, init))
    if stage:
        config = update(config, {"pretrain": {"stages": stage}})
    try:
        model = pretrain.pretrain(
            cache,
            out,
            config=config,
            init=init or None,
            resume=resume,
            device=device,
            devices=devices,
            nodes=nodes,
            progress=progress if is_first() else lambda title: silent,
            say=functools.partial(_say, config) if is_first() else lambda line: None,
        )
    except Interrupted:
        if is_first():
            raise
        return None  # the first process has saved for all, and reports it
    return _pretrained(model, out) if is_first() else None


def _say(config: Config, line: str) -> None:
    """Show the steps to come, and how to take fewer where they are as many as in the paper."""
    stages = {"one": config.pretrain.stage_one, "two": config.pretrain.stage_two}
    long = [
        name
        for name, training in stages.items()
        if config.pretrain.stages in ("both", name)
        and not training.steps
        and training.epochs == TrainingConfig().epochs
    ]
    note = (
        " (as in the paper; a recipe such as --config self-supervised takes fewer)" if long else ""
    )
    say(f"{line}{note}")


def _base(path: str, init: str) -> Config:
    """Return the config that flags change: that of the initial model, or one for the cache."""
    from patchifier import cache, checkpoint

    spectrogram = cache.Cache(path, partial=True).spectrogram.without_pitch
    if init:
        return checkpoint.load(init).config
    return Config(spectrogram=spectrogram)


def _pretrained(model: Path, out: str) -> Outcome:
    facts = json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))
    text = f"model in {model}, {facts['parameters']:,} parameters, {facts['seconds']:.0f} s"
    return Outcome({"model": str(model), **facts}, text)


def finetune(
    model: str,
    cache: str,
    *,
    out: str,
    method: Literal[
        "linear-probe", "freeze-extractor", "freeze-bottleneck", "full", "all"
    ] = "full",
    resume: bool = False,
    device: str = "auto",
    changes: Annotated[Overrides, FinetuneConfig, EmbedConfig],
) -> Outcome:
    """Evaluate a model on a task by partial fine-tuning.

    Settings are those of the model's config.json, which its recipe may have changed from the
    defaults below; the first line printed names them.
    Numbers in brackets, such as (4.5), are sections of the paper.

    Parameters
    ----------
    model : str
        Model folder, or a bundled model's name such as patchifier-base.
    cache : str
        From 'patchifier prepare', with targets.
    out : str
        Run folder.
    method : str
        Which parts are trained.
    resume : bool
        Continue the run in --out.
    device : str
        auto, cpu, cuda, mps.
    changes : Overrides
        Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.

    Examples
    --------
    Train all parameters of a model on a labelled set:
        $ patchifier finetune patchifier-base genres --out finetuned

    The paper's four ways, one after the other:
        $ patchifier finetune run/model genres --out finetuned --method all
    """
    from patchifier import checkpoint, weights
    from patchifier.evaluate.controls import controls
    from patchifier.train import finetune

    start = checkpoint.load(model)
    config = changes.apply(start.config)
    methods = METHODS if method == "all" else (method,)
    say(_tuning_line(model, changes, config))
    tuned = finetune.finetune(
        start,
        cache,
        out,
        methods=methods,
        config=config,
        encoder=weights.title(model),
        resume=resume,
        device=device,
        progress=progress,
    )
    rows = [one.row for one in tuned]
    try:
        rows += controls(
            start,
            cache,
            out,
            config=config,
            tuned=tuned,
            resume=resume,
            device=device,
            progress=progress,
        )
    except BaseException:
        say(results_table(rows))
        raise
    return Outcome({"rows": rows}, results_table(rows))


def _tuning_line(model: str, changes: Overrides, config: Config) -> str:
    """Say where the settings come from, which are the model's own unless others are given."""
    from patchifier import weights
    from patchifier.evaluate.report.tables import tuning_text

    given = [f"--config {changes.file}"] * bool(changes.file)
    given += ["flags"] * bool(changes.sections.get("finetune"))
    changed = f", changed by {' and '.join(given)}" if given else ""
    text = tuning_text(to_dict(config.finetune))
    return f"settings of {weights.find(model) / 'config.json'}{changed}: {text}"


WATCH_S = 1.0


def watch(run: str) -> Outcome:
    """Show the curves of a run while it trains, until it ends or you press Ctrl-C.

    In a pipe, show them once. TensorBoard, where it is installed, reads RUN/*/tensorboard.

    Parameters
    ----------
    run : str
        Run folder of pretrain or finetune.

    Examples
    --------
    The curves of a run that trains now:
        $ patchifier watch run

    The last value of each curve, for a program:
        $ patchifier watch run --json
    """
    from patchifier.train.watch import Watched

    watched = Watched(run)
    watched.update()
    try:
        while sys.stderr.isatty() and not watched.ended:
            say(f"\x1b[2J\x1b[H{watched.text()}")
            time.sleep(WATCH_S)
            watched.update()
    except KeyboardInterrupt:  # it is how to leave
        pass
    facts = watched.facts | {"state": watched.state}
    return Outcome({"facts": facts, "latest": watched.latest()}, watched.text())

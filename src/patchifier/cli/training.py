"""The commands that train: demo, prepare, pretrain, finetune."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.cli.flags import Flags, add_command, add_common, configure, results_table, say
from patchifier.cli.progress import progress
from patchifier.config import (
    AugmentConfig,
    Config,
    EmbedConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    RequestError,
    SpectrogramConfig,
    read_changes,
    update,
)

METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full", "all")


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = add_command(
        commands,
        "demo",
        "The whole story on the bundled clips: cache, stage I, stage II, probes, four methods, report.",
    )
    command.add_argument("--out", type=str, default="runs/demo", help="Folder for everything.")
    add_common(command)

    command = add_command(commands, "prepare", "Decode audio once, into a cache of log-mels.")
    command.add_argument(
        "source",
        type=str,
        help="A folder of audio, a CSV or JSONL manifest, 'demo', or a published data set such as gtzan or mtat:train.",
    )
    command.add_argument("--root", type=str, default="", help="Folder of a published data set.")
    command.add_argument(
        "--partial",
        action="store_true",
        help="Take what is there of a published data set, if some of it is missing.",
    )
    command.add_argument("--out", type=str, required=True, help="Folder of the cache.")
    command.add_argument(
        "--model",
        type=str,
        default="",
        help="Make the log-mels that this model reads, to fine-tune it; the paper's by default.",
    )
    command.add_argument(
        "--workers", type=int, default=0, help="Decoding processes; 0 is one for each core."
    )
    add_common(command, spectrogram=SpectrogramConfig)

    command = add_command(commands, "pretrain", "Learn from unlabelled music, in two stages.")
    command.add_argument("cache", type=str, help="From 'patchifier prepare'.")
    command.add_argument("--out", type=str, required=True, help="Run folder.")
    command.add_argument(
        "--init",
        type=str,
        default="",
        help="Model folder or bundled model to start from; its config is then the default.",
    )
    command.add_argument(
        "--stage",
        choices=["one", "two", "both"],
        default="both",
        help="Short for --pretrain.stages.",
    )
    command.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, mps.")
    command.add_argument(
        "--devices",
        type=int,
        default=1,
        help="Devices to share each batch, one process each. torchrun and SLURM bring their own number.",
    )
    command.add_argument(
        "--nodes",
        type=int,
        default=1,
        help="Machines; start the same command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set.",
    )
    add_common(
        command,
        model=ModelConfig,
        augment=AugmentConfig,
        pretrain=PretrainConfig,
        embed=EmbedConfig,
    )

    command = add_command(commands, "finetune", "Judge a model on a task by partial fine-tuning.")
    command.add_argument(
        "model", type=str, help="Model folder, or a bundled model's name such as patchifier-base."
    )
    command.add_argument("cache", type=str, help="From 'patchifier prepare', with targets.")
    command.add_argument("--out", type=str, required=True, help="Run folder.")
    command.add_argument("--method", choices=METHODS, default="full", help="Which parts learn.")
    command.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, mps.")
    add_common(command, finetune=FinetuneConfig, embed=EmbedConfig)


def run_demo(flags: Flags) -> int:
    """``patchifier demo``."""
    from patchifier.evaluate import demo

    base = update(Config(), read_changes("demo"))
    outcome = demo.demo(
        flags.get("out", "runs/demo"), config=configure(base, flags), progress=progress
    )
    results = outcome.results
    lines = [results_table(results["rows"]), ""]
    lines += [
        f"{row['first']} - {row['second']}: {100 * row['value']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        for row in results["differences"]
    ]
    lines += ["", *results["notes"], ""]
    lines.append(
        "Stage II, masked-patch MSE on held-out clips: "
        + ", ".join(f"{name} {value:.5f}" for name, value in results["stage_two"].items())
    )
    lines.append(
        f"{results['parameters']:,} parameters, {results['seconds']:.0f} s. Report: {outcome.page}"
    )
    say(flags, results, "\n".join(lines))
    return 0


def run_prepare(flags: Flags) -> int:
    """``patchifier prepare``."""
    from patchifier import cache, datasets, weights

    if flags.get("model"):
        if flags.get("config"):
            raise RequestError(
                "--model and --config both say what log-mels to make, expected one of them."
            )
        flags = flags | {"config": str(weights.find(flags["model"]) / "config.json")}
    config = configure(
        Config(),
        {name: value for name, value in flags.items() if name != "config"} | {"config": ""},
    ).spectrogram
    if flags.get("config"):
        changes = read_changes(flags["config"])
        update(Config(), changes)  # refuses what is misspelt anywhere in the file
        config = update(
            update(SpectrogramConfig(), changes.get("spectrogram", {}), where="spectrogram"),
            flags.get("spectrogram") or {},
            where="spectrogram",
        )
    dataset = datasets.load(
        flags["source"], root=flags.get("root") or None, partial=flags.get("partial", False)
    )
    done = cache.prepare(
        dataset,
        flags["out"],
        config=config,
        workers=flags.get("workers") or None,
        progress=progress("log-mels"),
    )
    for clip, reason in done.skipped:
        print(f"skipped {clip.id}: {reason}", file=sys.stderr)
    results = {
        "clips": done.clips,
        "decoded": done.decoded,
        "skipped": len(done.skipped),
        "hours": done.audio_s / 3600,
        "cache": flags["out"],
    }
    text = f"{done.clips} clips, {done.audio_s / 3600:.2f} h, in {flags['out']} ({done.decoded} decoded now, the rest was there)"
    if done.skipped:
        text += f"; {len(done.skipped)} skipped, named in {Path(flags['out']) / 'skipped.csv'}"
    kept = (
        dict.fromkeys(name for clip in dataset.clips for name in clip.info)
        if dataset.task is None
        else ()
    )
    if kept:
        text += f"; no targets: of the columns {', '.join(kept)} none is called 'target' or 'label'"
    say(flags, results, text)
    return 1 if done.skipped else 0


def run_pretrain(flags: Flags) -> int:
    """``patchifier pretrain``."""
    from dataclasses import replace

    from patchifier import cache, checkpoint
    from patchifier.io import silent
    from patchifier.train import pretrain
    from patchifier.train.run import Interrupted, is_first

    data = cache.Cache(flags["cache"], partial=True)
    if flags.get("init"):
        base = checkpoint.load(flags["init"]).config
    else:
        plain = data.spectrogram.without_pitch
        base = Config(spectrogram=plain, model=replace(ModelConfig(), bands=plain.bands))
    config = configure(base, flags)
    if flags.get("stage"):
        config = update(config, {"pretrain": {"stages": flags["stage"]}})
    try:
        model = pretrain.pretrain(
            flags["cache"], flags["out"], config=config, init=flags.get("init") or None, resume=flags.get("resume", False), device=flags.get("device", "auto"),
            devices=flags.get("devices", 1), nodes=flags.get("nodes", 1), progress=progress if is_first() else lambda title: silent,
        )  # fmt: skip
    except Interrupted:
        if is_first():
            raise
        return 0  # the first process has saved for all, and says so
    if not is_first():
        return 0
    facts = json.loads((Path(flags["out"]) / "run.json").read_text(encoding="utf-8"))
    say(
        flags,
        {"model": str(model), **facts},
        f"model in {model}, {facts['parameters']:,} parameters, {facts['seconds']:.0f} s",
    )
    return 0


def run_finetune(flags: Flags) -> int:
    """``patchifier finetune``."""
    from patchifier import checkpoint
    from patchifier.evaluate.controls import controls
    from patchifier.train import finetune

    start = checkpoint.load(flags["model"])
    chosen = flags.get("method", "full")
    results = finetune.finetune(
        start, flags["cache"], flags["out"], methods=METHODS[:-1] if chosen == "all" else (chosen,), config=configure(start.config, flags),
        resume=flags.get("resume", False), device=flags.get("device", "auto"), progress=progress,
    )  # fmt: skip
    rows = [tuned.row for tuned in results]
    rows += controls(
        start, flags["cache"], flags["out"], config=configure(start.config, flags), resume=flags.get("resume", False),
        device=flags.get("device", "auto"), progress=progress,
    )  # fmt: skip
    say(flags, {"rows": rows}, results_table(rows))
    return 0


COMMANDS: dict[str, Callable[[Flags], int]] = {
    "demo": run_demo,
    "prepare": run_prepare,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
}

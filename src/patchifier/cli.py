"""Flags -> functions -> files. The only part that prints.

Exit codes: 0 done; 1 done, but some inputs were skipped; 2 the request makes no sense; 3 unexpected failure; 130 interrupted, work saved.
torch and everything heavy is imported when a command runs, not for ``--help``.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse

import patchifier
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
    to_dict,
    update,
)

METHODS = ("linear-probe", "freeze-extractor", "freeze-bottleneck", "full", "all")
Flags = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    flags = parser().parse_args(argv, defaults=False).as_dict()
    command = flags["subcommand"]
    try:
        return COMMANDS[command](flags.get(command) or {})
    except RequestError as error:
        print(f"patchifier {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "Interrupted":  # of patchifier.runs, which --help must not import
            print(f"\npatchifier {command}: {error}", file=sys.stderr)
            return 130
        traceback.print_exc()
        print(f"patchifier {command}: this is a fault of patchifier, please report it with the lines above.", file=sys.stderr)
        return 3


def parser() -> jsonargparse.ArgumentParser:
    """Build the parser of all commands."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    root = jsonargparse.ArgumentParser(
        prog="patchifier", description="Music as sequences of spectrogram patches.", version=patchifier.__version__, allow_abbrev=False
    )
    commands = root.add_subcommands(required=True, metavar="COMMAND", title="commands")

    command = _command(commands, "demo", "The whole story on the bundled clips: cache, stage I, stage II, probes, four methods, report.")
    command.add_argument("--out", type=str, default="runs/demo", help="Folder for everything.")
    _add_common(command)

    command = _command(commands, "prepare", "Decode audio once, into a cache of log-mels.")
    command.add_argument("source", type=str, help="A folder of audio, a CSV or JSONL manifest, or 'demo'.")
    command.add_argument("--out", type=str, required=True, help="Folder of the cache.")
    command.add_argument("--workers", type=int, default=0, help="Decoding processes; 0 is one for each core.")
    _add_common(command, spectrogram=SpectrogramConfig)

    command = _command(commands, "pretrain", "Learn from unlabelled music, in two stages.")
    command.add_argument("cache", type=str, help="From 'patchifier prepare'.")
    command.add_argument("--out", type=str, required=True, help="Run folder.")
    command.add_argument("--init", type=str, default="", help="Model folder to start from; its config is then the default.")
    command.add_argument("--stage", type=str, choices=["one", "two", "both"], default="both", help="Short for --pretrain.stages.")
    command.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, mps.")
    _add_common(command, model=ModelConfig, augment=AugmentConfig, pretrain=PretrainConfig, embed=EmbedConfig)

    command = _command(commands, "finetune", "Judge a model on a task by partial fine-tuning.")
    command.add_argument("model", type=str, help="Model folder.")
    command.add_argument("cache", type=str, help="From 'patchifier prepare', with targets.")
    command.add_argument("--out", type=str, required=True, help="Run folder.")
    command.add_argument("--method", type=str, choices=METHODS, default="full", help="Which parts learn.")
    command.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    command.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, mps.")
    _add_common(command, finetune=FinetuneConfig, embed=EmbedConfig)

    command = _command(commands, "reconstruct", "Draw what a model fills in where patches of a song are hidden.")
    command.add_argument("file", type=str, help="Audio file.")
    command.add_argument("--out", type=str, required=True, help="Picture: .png, .svg or .pdf.")
    command.add_argument("--model", type=str, default="", help="Model folder.")
    command.add_argument("--start_s", type=float, default=0.0, help="Where in the song to begin, in seconds.")
    command.add_argument("--sound", action="store_true", help="Also write what can be heard of it, as wav files beside the picture.")
    _add_common(command)

    command = _command(commands, "report", "Draw figures and tables from run folders.")
    command.add_argument("runs", type=str, nargs="+", help="Run folders, or folders that hold some.")
    command.add_argument("--out", type=str, required=True, help="Folder for figures and index.html.")
    _add_common(command)

    command = _command(commands, "info", "Say what a model folder or a cache holds.")
    command.add_argument("path", type=str, help="The folder.")
    command.add_argument("--verify", action="store_true", help="Check every clip of a cache against its checksum.")
    _add_common(command)
    return root


def _command(commands: Any, name: str, description: str) -> jsonargparse.ArgumentParser:
    command = jsonargparse.ArgumentParser(description=description, allow_abbrev=False)
    commands.add_subcommand(name, command, help=description)
    return command


def _add_common(command: jsonargparse.ArgumentParser, **sections: type) -> None:
    command.add_argument("--json", action="store_true", help="Print results as JSON, and nothing else, on standard output.")
    if sections or (command.description or "").startswith("The whole"):
        command.add_argument("--config", type=str, default="", help="JSON file with any part of a config, such as a run's own config.json.")
    for name, section in sections.items():
        command.add_class_arguments(section, name)


def configure(base: Config, flags: Flags) -> Config:
    """Change a config by a file and then by flags."""
    if flags.get("config"):
        base = update(base, read_changes(flags["config"]))
    sections = {name: flags[name] for name in to_dict(base) if isinstance(flags.get(name), dict)}
    return update(base, sections)


# --- progress ---


def progress(title: str) -> Callable[[int, int, str], None]:
    """Show a step's progress on standard error: a bar on a terminal, a plain line every ten seconds in a pipe."""
    return _bar(title) if sys.stderr.isatty() else _lines(title)


def _bar(title: str) -> Callable[[int, int, str], None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>30}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(title, total=None, note="")

    def show(done: int, total: int, note: str) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total, note=note)
        if done >= total:
            bar.stop()

    return show


def _lines(title: str) -> Callable[[int, int, str], None]:
    first: list[tuple[float, int]] = []  # when it was first called, and how much was done by then
    said = 0.0

    def show(done: int, total: int, note: str) -> None:
        nonlocal said
        now = time.monotonic()
        if not first:
            first.append((now, done))
            said = now
        if now - said >= 10 or done >= total:
            said = now
            left = (now - first[0][0]) / max(1, done - first[0][1]) * (total - done)
            print(f"{title}: {done} of {total}, {left:.0f} s left{', ' + note if note else ''}", file=sys.stderr, flush=True)

    return show


def say(flags: Flags, results: Any, text: str) -> None:
    """Print results for people, or as JSON."""
    print(json.dumps(results, indent=1) if flags.get("json") else text)


# --- commands ---


def run_demo(flags: Flags) -> int:
    """``patchifier demo``."""
    from patchifier import demo

    base = update(Config(), read_changes(demo.recipe("demo.json")))
    outcome = demo.demo(flags.get("out", "runs/demo"), config=configure(base, flags), progress=progress)
    results = outcome.results
    lines = [_table(results["rows"]), ""]
    lines += [
        f"{row['first']} - {row['second']}: {100 * row['value']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        for row in results["differences"]
    ]
    lines += ["", *results["notes"], ""]
    lines.append("Stage II, masked-patch MSE on held-out clips: " + ", ".join(f"{name} {value:.5f}" for name, value in results["stage_two"].items()))
    lines.append(f"{results['parameters']:,} parameters, {results['seconds']:.0f} s. Report: {outcome.page}")
    say(flags, results, "\n".join(lines))
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    head = f"{'encoder':<12}{'method':<20}{'metric':<10}{'value':>7}   95 % interval     n"
    body = [f"{r['encoder']:<12}{r['method']:<20}{r['metric']:<10}{r['value']:>7.3f}   [{r['low']:.3f}, {r['high']:.3f}]  {r['n']:>4}" for r in rows]
    return "\n".join([head, *body])


def run_prepare(flags: Flags) -> int:
    """``patchifier prepare``."""
    from patchifier import cache, datasets

    config = configure(Config(), {name: value for name, value in flags.items() if name != "config"} | {"config": ""}).spectrogram
    if flags.get("config"):
        changes = read_changes(flags["config"])
        update(Config(), changes)  # refuses what is misspelt anywhere in the file
        config = update(update(SpectrogramConfig(), changes.get("spectrogram", {}), where="spectrogram"), flags.get("spectrogram") or {}, where="spectrogram")
    dataset = datasets.load(flags["source"])
    done = cache.prepare(dataset, flags["out"], config=config, workers=flags.get("workers") or None, progress=progress("log-mels"))
    for clip, reason in done.skipped:
        print(f"skipped {clip.id}: {reason}", file=sys.stderr)
    results = {"clips": done.clips, "decoded": done.decoded, "skipped": len(done.skipped), "hours": done.audio_s / 3600, "cache": flags["out"]}
    text = f"{done.clips} clips, {done.audio_s / 3600:.2f} h, in {flags['out']} ({done.decoded} decoded now, the rest was there)"
    if done.skipped:
        text += f"; {len(done.skipped)} skipped, named in {Path(flags['out']) / 'skipped.csv'}"
    say(flags, results, text)
    return 1 if done.skipped else 0


def run_pretrain(flags: Flags) -> int:
    """``patchifier pretrain``."""
    from dataclasses import replace

    from patchifier import cache, checkpoint, pretrain

    data = cache.Cache(flags["cache"])
    if flags.get("init"):
        base = checkpoint.load(flags["init"]).config
    else:
        base = Config(spectrogram=data.spectrogram, model=replace(ModelConfig(), bands=data.spectrogram.bands))
    config = configure(base, flags)
    if flags.get("stage"):
        config = update(config, {"pretrain": {"stages": flags["stage"]}})
    model = pretrain.pretrain(
        flags["cache"], flags["out"], config=config, init=flags.get("init") or None,
        resume=flags.get("resume", False), device=flags.get("device", "auto"), progress=progress,
    )  # fmt: skip
    facts = json.loads((Path(flags["out"]) / "run.json").read_text(encoding="utf-8"))
    say(flags, {"model": str(model), **facts}, f"model in {model}, {facts['parameters']:,} parameters, {facts['seconds']:.0f} s")
    return 0


def run_finetune(flags: Flags) -> int:
    """``patchifier finetune``."""
    from patchifier import checkpoint, finetune

    start = checkpoint.load(flags["model"])
    chosen = flags.get("method", "full")
    results = finetune.finetune(
        start, flags["cache"], flags["out"], methods=METHODS[:-1] if chosen == "all" else (chosen,), config=configure(start.config, flags),
        resume=flags.get("resume", False), device=flags.get("device", "auto"), progress=progress,
    )  # fmt: skip
    rows = [tuned.row for tuned in results]
    rows += finetune.controls(
        start, flags["cache"], flags["out"], config=configure(start.config, flags), resume=flags.get("resume", False), device=flags.get("device", "auto")
    )
    say(flags, {"rows": rows}, _table(rows))
    return 0


def run_reconstruct(flags: Flags) -> int:
    """``patchifier reconstruct``."""
    import numpy as np

    from patchifier import audio, embed, model, pretrain, report, runs, spectrogram

    embedder = embed.load(flags.get("model") or None)
    config, out = embedder.config, Path(flags["out"])
    seconds = config.model.positions * config.model.frames * config.spectrogram.frame_s + 1
    start_s = flags.get("start_s", 0.0)
    waveform = audio.load(flags["file"], sample_rate=config.spectrogram.sample_rate, start_s=start_s, end_s=start_s + seconds)
    log_mel = embedder.log_mel(waveform, config.spectrogram.sample_rate)
    count = min(config.model.positions, max(1, log_mel.shape[1] // config.model.frames))
    arrays: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    for ratio in pretrain.PICTURE_RATIOS:
        masked = model.draw_mask(runs.generator(config.pretrain.seed, "mask", 2**40), np.ones((1, count), bool), ratio)[0]
        patches, filled = embedder.reconstruct(log_mel, masked)
        arrays |= {"original": patches.numpy(), f"masked_{ratio}": masked.astype(np.uint8), f"reconstructed_{ratio}": filled.numpy()}
        errors[str(ratio)] = float((patches - filled)[masked].square().mean())
        if flags.get("sound"):
            for name, values in ((f"reconstructed_{ratio}", filled), ("original", patches)):
                heard = spectrogram.to_waveform(spectrogram.join(values[:, None], count * config.model.frames, tail="anchor"), config.spectrogram)
                audio.save(out.with_name(f"{out.stem}_{name}.wav"), heard.numpy(), config.spectrogram.sample_rate)
    facts = pretrain.picture_facts(Path(flags["file"]).name, {"title": Path(flags["file"]).stem}, config)
    report.save_figure(report.reconstruction_figure(arrays, facts), out)
    say(
        flags,
        {"picture": str(out), "masked_mse": errors},
        f"{out}: masked-patch MSE " + ", ".join(f"{value:.5f} at ratio {ratio}" for ratio, value in errors.items()),
    )
    return 0


def run_report(flags: Flags) -> int:
    """``patchifier report``."""
    from patchifier import report

    page = report.report(flags["runs"], flags["out"])
    say(flags, {"page": str(page)}, f"report: {page}")
    return 0


def run_info(flags: Flags) -> int:
    """``patchifier info``."""
    path = Path(flags["path"])
    facts = _cache_facts(path, bool(flags.get("verify"))) if (path / "cache.json").exists() else _model_facts(path)
    plain = {name: value for name, value in facts.items() if not isinstance(value, dict | list) or name == "problems"}
    say(flags, facts, "\n".join(f"{name:<22}{value}" for name, value in plain.items()))
    return 1 if facts.get("problems") else 0


def _model_facts(path: Path) -> dict[str, Any]:
    from patchifier import checkpoint

    loaded = checkpoint.load(path)
    parts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in loaded.model.named_children()}
    facts = {"kind": "model", "parameters": loaded.model.parameter_count(), **{f"parameters_{name}": count for name, count in parts.items()}}
    if loaded.task:
        facts |= {"task": loaded.task.kind, "names": list(loaded.task.names)}
    return facts | dict(loaded.facts) | {"config": to_dict(loaded.config)}


def _cache_facts(path: Path, verify: bool) -> dict[str, Any]:
    from patchifier import cache

    data = cache.Cache(path)
    facts = {
        "kind": "cache",
        "dataset": data.name,
        "clips": len(data.clips),
        "hours": round(float(data.frames.sum()) * data.spectrogram.frame_s / 3600, 3),
        "task": data.task.kind if data.task else None,
        "spectrogram": to_dict(data.spectrogram),
    }
    return facts | ({"problems": data.verify()} if verify else {})


COMMANDS: dict[str, Callable[[Flags], int]] = {
    "demo": run_demo,
    "prepare": run_prepare,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "reconstruct": run_reconstruct,
    "report": run_report,
    "info": run_info,
}


def script() -> None:
    """Entry point of the ``patchifier`` command."""
    sys.exit(main())


if __name__ == "__main__":
    script()

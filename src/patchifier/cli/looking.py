"""The commands that show what is there: reconstruct, report, info."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchifier.cli.flags import Flags, add_command, add_common, say
from patchifier.config import to_dict


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    command = add_command(
        commands, "reconstruct", "Draw what a model fills in where patches of a song are hidden."
    )
    command.add_argument("file", type=str, help="Audio file.")
    command.add_argument("--out", type=str, required=True, help="Picture: .png, .svg or .pdf.")
    command.add_argument(
        "--model",
        type=str,
        default="",
        help="Model folder or bundled model; patchifier-paper, which learnt to draw, by default.",
    )
    command.add_argument(
        "--start_s", type=float, default=0.0, help="Where in the song to begin, in seconds."
    )
    command.add_argument(
        "--sound",
        action="store_true",
        help="Also write what can be heard of it, as wav files beside the picture.",
    )
    add_common(command)

    command = add_command(commands, "report", "Draw figures and tables from run folders.")
    command.add_argument(
        "runs", type=str, nargs="+", help="Run folders, or folders that hold some."
    )
    command.add_argument(
        "--out", type=str, required=True, help="Folder for figures and index.html."
    )
    add_common(command)

    command = add_command(
        commands,
        "info",
        "Say what a model or a cache holds; without one, which models come with the package.",
    )
    command.add_argument(
        "path",
        type=str,
        nargs="?",
        default="",
        help="A cache, a model folder, or a bundled model's name.",
    )
    command.add_argument(
        "--verify", action="store_true", help="Check every clip of a cache against its checksum."
    )
    command.add_argument(
        "--parts",
        type=int,
        default=0,
        help="Name the shards of each part of a cache, for machines that train with --pretrain.parts.",
    )
    add_common(command)


def run_reconstruct(flags: Flags) -> int:
    """``patchifier reconstruct``."""
    import numpy as np

    from patchifier import audio, embed, spectrogram, weights, windows
    from patchifier.evaluate import report
    from patchifier.nn import masking
    from patchifier.seeding import generator
    from patchifier.train import pretrain, references

    embedder = embed.load(flags.get("model") or weights.PAPER)
    config, out = embedder.config, Path(flags["out"])
    most, _ = windows.window_patches(config)
    seconds = most * config.model.frames * config.spectrogram.frame_s + 1
    start_s = flags.get("start_s", 0.0)
    waveform = audio.load(
        flags["file"],
        sample_rate=config.spectrogram.sample_rate,
        start_s=start_s,
        end_s=start_s + seconds,
    )
    log_mel = embedder.log_mel(waveform, config.spectrogram.sample_rate)
    count = min(most, max(1, log_mel.shape[1] // config.model.frames))
    arrays: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    beside: dict[str, dict[str, float]] = {}
    for ratio in pretrain.PICTURE_RATIOS:
        masked = masking.random_masking(
            generator(config.pretrain.seed, "mask", 2**40), np.ones((1, count), bool), ratio
        )[0]
        patches, filled = embedder.reconstruct(log_mel, masked)
        arrays |= {
            "original": patches.numpy(),
            f"masked_{ratio}": masked.astype(np.uint8),
            f"reconstructed_{ratio}": filled.numpy(),
        }
        errors[str(ratio)] = float((patches - filled)[masked].square().mean())
        beside[str(ratio)] = references.untrained_mse(patches.numpy(), masked)
        if flags.get("sound"):
            for name, values in ((f"reconstructed_{ratio}", filled), ("original", patches)):
                heard = spectrogram.to_waveform(
                    spectrogram.join(values[:, None], count * config.model.frames, tail="anchor"),
                    config.spectrogram,
                )
                audio.save(
                    out.with_name(f"{out.stem}_{name}.wav"),
                    heard.numpy(),
                    config.spectrogram.sample_rate,
                )
    facts = pretrain.picture_facts(
        Path(flags["file"]).name, {"title": Path(flags["file"]).stem}, config
    )
    report.save_figure(report.reconstruction_figure(arrays, facts), out)
    say(
        flags,
        {"picture": str(out), "masked_mse": errors, "references": beside},
        "\n".join(
            [
                f"{out}: MSE of masked patches",
                *(_error_line(ratio, value, beside[ratio]) for ratio, value in errors.items()),
            ]
        ),
    )
    return 0


def _error_line(ratio: str, error: float, beside: dict[str, float]) -> str:
    """Tell the error at a mask ratio beside those of predictors without a model."""
    others = [f"{name.replace('_', ' ')} {value:.5f}" for name, value in beside.items()]
    return f"  ratio {ratio:<5}" + ", ".join([f"model {error:.5f}", *others])


def run_report(flags: Flags) -> int:
    """``patchifier report``."""
    from patchifier.evaluate import report

    page = report.report(flags["runs"], flags["out"])
    say(flags, {"page": str(page)}, f"report: {page}")
    return 0


def run_info(flags: Flags) -> int:
    """``patchifier info``."""
    if not flags.get("path"):
        return _list_models(flags)
    path = Path(flags["path"])
    facts = (
        _cache_facts(path, bool(flags.get("verify")), flags.get("parts", 0))
        if (path / "cache.json").exists()
        else _model_facts(flags["path"])
    )
    plain = {
        name: value
        for name, value in facts.items()
        if not isinstance(value, dict | list) or name == "problems" or name.startswith("part ")
    }
    say(flags, facts, "\n".join(f"{name:<22}{value}" for name, value in plain.items()))
    return 1 if facts.get("problems") else 0


def _list_models(flags: Flags) -> int:
    """Models that come with the package: hours and date are what was written when they were released."""
    from patchifier import checkpoint, embed, weights

    rows = []
    for name in weights.names():
        held = checkpoint.load(name)
        size = embed.Embedder(held.model, held.config).size
        rows.append(
            {
                "name": name,
                "size": size,
                "parameters": held.model.parameter_count(),
                "hours": held.facts.get("hours"),
                "date": held.facts.get("date"),
            }
        )
    head = f"{'name':<20}{'vector':>8}{'parameters':>12}{'hours':>8}  date"
    lines = [
        f"{row['name']:<20}{row['size']:>8}{row['parameters']:>12,}{row['hours'] or '?':>8}  {row['date'] or '?'}"
        for row in rows
    ]
    say(
        flags,
        rows,
        "\n".join(
            [head, *lines]
            if rows
            else [
                f"no models are in this copy of the package: install it again, or name {weights.expected()}."
            ]
        ),
    )
    return 0


def _model_facts(path: str) -> dict[str, Any]:
    from patchifier import checkpoint, embed, weights

    loaded = checkpoint.load(path)
    parts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in loaded.model.named_children()
    }
    facts = {
        "kind": "model",
        "size": embed.Embedder(loaded.model, loaded.config).size,
        "parameters": loaded.model.parameter_count(),
        **{f"parameters_{name}": count for name, count in parts.items()},
    }
    if loaded.task:
        facts |= {"task": loaded.task.kind, "names": list(loaded.task.names)}
    if path in weights.names():
        facts["card"] = str(weights.find(path) / "README.md")
    return facts | dict(loaded.facts) | {"config": to_dict(loaded.config)}


def _cache_facts(path: Path, verify: bool, parts: int) -> dict[str, Any]:
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
    shards = {
        f"part {number}": [path.name for path in data.shard_files(part)]
        for number, part in enumerate(data.parts(parts) if parts else [])
    }
    return facts | shards | ({"problems": data.verify()} if verify else {})


COMMANDS: dict[str, Callable[[Flags], int]] = {
    "reconstruct": run_reconstruct,
    "report": run_report,
    "info": run_info,
}

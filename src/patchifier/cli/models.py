"""Commands about models and caches: info, export."""

from pathlib import Path
from typing import Any

from patchifier.cli.command import Outcome
from patchifier.config import RequestError, to_dict


def info(path: str = "", *, verify: bool = False, parts: int = 0) -> Outcome:
    """Describe a model or a cache; without a path, list the models of the package.

    Parameters
    ----------
    path : str
        A cache, a model folder, or a bundled model's name.
    verify : bool
        Check every clip of a cache against its checksum.
    parts : int
        Name the shards of each part of a cache, for machines that train with
        --pretrain.n_cache_parts.
    """
    if not path:
        return _list_models()
    is_cache = (Path(path) / "cache.json").exists()
    facts = _cache_facts(path, verify, parts) if is_cache else _model_facts(path)
    lines = [f"{name:<22}{value}" for name, value in facts.items() if _is_short(name, value)]
    return Outcome(facts, "\n".join(lines), 1 if facts.get("problems") else 0)


def _is_short(name: str, value: Any) -> bool:
    listed = name == "problems" or name.startswith("part ")
    return listed or not isinstance(value, dict | list)


def _list_models() -> Outcome:
    """List the bundled models; hours of training data and date are those of their release."""
    from patchifier import weights

    rows = [_bundled_facts(name) for name in weights.names()]
    if not rows:
        other = f"install it again, or name {weights.expected()}."
        return Outcome([], f"no models are in this copy of the package: {other}")
    lines = [f"{'name':<20}{'vector':>8}{'parameters':>12}{'hours':>8}  date"]
    for row in rows:
        sizes = f"{row['name']:<20}{row['size']:>8}{row['parameters']:>12,}"
        lines.append(f"{sizes}{row['hours'] or '?':>8}  {row['date'] or '?'}")
    return Outcome(rows, "\n".join(lines))


def _bundled_facts(name: str) -> dict[str, Any]:
    from patchifier import model_folder

    loaded = model_folder.read(name)
    return {
        "name": name,
        "size": loaded.config.embedding_size,
        "parameters": sum(loaded.parameters().values()),
        "hours": loaded.facts.get("hours"),
        "date": loaded.facts.get("date"),
    }


def _model_facts(path: str) -> dict[str, Any]:
    from patchifier import model_folder, weights

    loaded = model_folder.read(path)
    parameters = loaded.parameters()
    facts = {
        "kind": "model",
        "size": loaded.config.embedding_size,
        "parameters": sum(parameters.values()),
    } | {f"parameters_{name}": count for name, count in parameters.items()}
    if loaded.task:
        facts |= {"task": loaded.task.kind_name, "names": list(loaded.task.names)}
    if path in weights.names():
        facts["card"] = str(weights.find(path) / "README.md")
    return facts | dict(loaded.facts) | {"config": to_dict(loaded.config)}


def _cache_facts(path: str, verify: bool, parts: int) -> dict[str, Any]:
    from patchifier.cache import Cache

    cache = Cache(path)
    facts = {
        "kind": "cache",
        "dataset": cache.name,
        "clips": len(cache.clips),
        "hours": round(float(cache.frames.sum()) * cache.spectrogram.frame_s / 3600, 3),
        "task": cache.task.kind_name if cache.task else None,
        "spectrogram": to_dict(cache.spectrogram),
    }
    for number, clips in enumerate(cache.parts(parts) if parts else []):
        facts[f"part {number}"] = [shard.name for shard in cache.shard_files(clips)]
    if verify:
        facts["problems"] = cache.verify()
    return facts


def export(model: str = "", *, onnx: str = "", graphs: bool = False) -> Outcome:
    """Write a model as one ONNX file, or add the graphs that run it without torch.

    Give one of --onnx and --graphs.

    Parameters
    ----------
    model : str
        Model folder or bundled model; patchifier-base by default.
    onnx : str
        File to write, from waveform to embedding: .onnx, or .pt2 for a program of torch.export.
    graphs : bool
        Write graph.onnx and, where the model can draw, reconstruct.onnx into the model folder.
    """
    if bool(onnx) == graphs:
        given = "both are given" if graphs else "neither is given"
        raise RequestError(
            f"export needs --onnx FILE or --graphs, but {given}: --onnx FILE writes one file, "
            "--graphs adds graphs to the model folder."
        )
    paths = _add_graphs(model) if graphs else [_export_file(model, onnx)]
    sizes = [path.stat().st_size for path in paths]
    lines = [f"{path}, {size / 1e6:.1f} MB" for path, size in zip(paths, sizes, strict=True)]
    facts = {"graphs": list(map(str, paths))} if graphs else {"onnx": str(paths[0])}
    return Outcome(facts | {"bytes": sum(sizes)}, "\n".join(lines))


def _export_file(model: str, path: str) -> Path:
    from patchifier.integrations.onnx import export

    return export(model or None, path)


def _add_graphs(model: str) -> list[Path]:
    from patchifier import weights
    from patchifier.checkpoint import add_graphs

    return add_graphs(model or weights.DEFAULT)

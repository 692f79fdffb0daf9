"""Commands about models, caches, tables and this installation: info, export."""

from pathlib import Path
from typing import Any

from patchifier.cli.command import Outcome
from patchifier.config import RequestError, to_dict

TABLES = (".parquet", ".npy")
LABELS = {  # of facts whose own name does not say what they count
    "size": "numbers in a vector",
    "hours": "hours of music",
    "minutes": "minutes of training",
    "seconds": "seconds of training",
    "clips heard": "clips trained on",
    "list": "list of its music",
}

DOUBTS = {
    True: "yes: no answer for sound unlike that of its training, or without a probable label",
    False: "no: it answers for every file",
}


def info(path: str = "", *, verify: bool = False, parts: int = 0, system: bool = False) -> Outcome:
    """Describe a model, a head, a cache or a table; without a path, what the package has.

    Parameters
    ----------
    path : str
        A cache, a model folder, a head, the name of a model or head of the package, or a table of
        'patchifier embed'.
    verify : bool
        Check every clip of a cache against its checksum.
    parts : int
        Name the shards of each part of a cache, for machines that train with
        --pretrain.n_cache_parts.
    system : bool
        List the versions of this installation, C libraries inside wheels included, and warn of
        known vulnerabilities.

    Examples
    --------
    The models of the package:
        $ patchifier info

    One model, one cache, one table:
        $ patchifier info patchifier-base
        $ patchifier info cache --verify
        $ patchifier info music.parquet
    """
    from patchifier import head_files

    if system:
        return _system(path)
    if not path:
        return _list_models()
    if Path(path).suffix in TABLES and Path(path).is_file():
        return _describe_table(path)
    is_cache = (Path(path) / "cache.json").exists()
    if head := head_files.find(path):
        facts = _head_facts(head)
    else:
        facts = _cache_facts(path, verify, parts) if is_cache else _model_facts(path)
    lines = [_fact(name, value) for name, value in facts.items() if _is_short(name, value)]
    return Outcome(facts, "\n".join(lines), 1 if facts.get("problems") else 0)


def _system(path: str) -> Outcome:
    from patchifier.system import describe

    if path:
        raise RequestError(f"--system is about this installation, expected no path, got {path}.")
    facts = describe()
    rows = [(name, facts[name], "") for name in ("patchifier", "python", "platform")]
    rows += [(name, version, "") for name, version in facts["packages"].items()]
    rows += [(row["name"], row["version"], f"in {row['package']}") for row in facts["libraries"]]
    lines = [
        f"{name:<15}{version or 'unknown':<22}{where}".rstrip() for name, version, where in rows
    ]
    return Outcome(facts, "\n".join(lines + [f"warning: {line}" for line in facts["warnings"]]))


def _describe_table(path: str) -> Outcome:
    """Describe a table of embeddings; its model is named if it is one of the package."""
    from patchifier.library.models import name_of
    from patchifier.library.stored import describe

    facts: dict[str, Any] = {"kind": "table", **describe(path)}
    facts["name"] = name_of(facts["model"])
    lines = [
        _fact(name, value)
        for name, value in facts.items()
        if name != "columns" and not (value is None and name in ("window_s", "hop_s"))
    ]
    lines += [f"column {name:<17}{what}" for name, what in facts["columns"].items()]
    return Outcome(facts, "\n".join(lines))


def _fact(name: str, value: object) -> str:
    """One line: what it is, and the value with thousands apart."""
    if name == "doubts":
        value = DOUBTS[bool(value)]
    label = LABELS.get(name, name.replace("_", " "))
    counts = isinstance(value, int) and not isinstance(value, bool) and name != "seed"
    return f"{label:<22}{format(value, ',') if counts else value}"


def _is_short(name: str, value: Any) -> bool:
    listed = name == "problems" or name.startswith("part ")
    return listed or not isinstance(value, dict | list)


def _list_models() -> Outcome:
    """List bundled models and heads; hours of training data and date are those of the release."""
    from patchifier import weights

    rows = [_bundled_facts(name) for name in weights.names()]
    if not rows:
        other = f"install it again, or name {weights.expected()}."
        return Outcome([], f"no models are in this copy of the package: {other}")
    heads = f"{'numbers in a vector':>21}{'parameters':>12}{'hours of music':>16}"
    lines = [f"{'name':<18}{heads}  released"]
    for row in rows:
        sizes = f"{row['name']:<18}{row['size']:>21,}{row['parameters']:>12,}"
        lines.append(f"{sizes}{row['hours'] or '?':>16}  {row['date'] or '?'}")
    found = [_head_facts(weights.ROOT / "heads" / name) for name in weights.heads()]
    lines += [f"{'head':<20}{'labels':>8}  measured on validation clips"] if found else []
    lines += [f"{row['name']:<20}{len(row['names']):>8}  {row['score']}" for row in found]
    lines += ["", "'patchifier info NAME' says how a model was made and where its card is."]
    return Outcome([*rows, *found], "\n".join(lines))


def _head_facts(folder: Path) -> dict[str, Any]:
    """What ``patchifier info`` prints of a head, from its file or folder."""
    from patchifier import heads

    head = heads.read(folder)
    card = folder / "README.md"
    facts = {
        "kind": "head",
        "name": folder.name if folder.is_dir() else folder.stem,
        "model": head.model,
        "identity": head.identity,
        "task": head.kind,
        "names": list(head.names),
        "labels": ", ".join(head.names),
        "doubts": head.known is not None,
    }
    if measured := head.facts.get("measured"):
        low, high = measured["low"], measured["high"]
        score = f"{measured['metric']} {measured['value']:.3f} [{low:.3f}, {high:.3f}]"
        facts["score"] = f"{score}, chance {head.facts['chance']:.3f}"
    elif score := _score(head.facts.get("accuracy")):
        facts["score"] = score
    return facts | dict(head.facts) | ({"card": str(card)} if card.is_file() else {})


def _score(accuracy: Any) -> str:
    """Accuracy of a head that was taught on labelled songs, in words; empty if it is not stated."""
    try:
        low, high = accuracy["interval"]
        text = f"accuracy {accuracy['accuracy']:.3f} [{low:.3f}, {high:.3f}] on "
        text += f"{accuracy['n']} songs, {accuracy['method']}"
        if most := accuracy.get("majority"):
            text += f"; always saying {most['label']!r} {most['accuracy']:.3f}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""
    return text if accuracy.get("enough", True) else f"{text}; too few songs to say"


def _bundled_facts(name: str) -> dict[str, Any]:
    facts = _model_facts(name)
    listed = ("size", "parameters", "hours", "date")
    return {"name": name} | {each: facts.get(each) for each in listed}


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


def export(model: str = "", *, onnx: str = "", hf: str = "", graphs: bool = False) -> Outcome:
    """Write a model for other programs, or add the graphs that run it without torch.

    Give one of --onnx, --hf and --graphs.

    Parameters
    ----------
    model : str
        Model folder or bundled model; patchifier-base by default.
    onnx : str
        File to write, from waveform to embedding: .onnx, or .pt2 for a program of torch.export.
    hf : str
        Folder to write, for AutoModel.from_pretrained(FOLDER, trust_remote_code=True).
    graphs : bool
        Write graph.onnx and, where the model can draw, reconstruct.onnx into the model folder.

    Examples
    --------
    One ONNX file: waveform in, vector out:
        $ patchifier export --onnx model.onnx

    A folder for transformers' AutoModel:
        $ patchifier export run/model --hf folder
    """
    given = [
        name for name, value in (("--onnx", onnx), ("--hf", hf), ("--graphs", graphs)) if value
    ]
    if len(given) != 1:
        names = " and ".join(given)
        raise RequestError(
            f"export writes one thing, but {f'{names} are' if given else 'none is'} given: "
            "--onnx FILE, --hf FOLDER, or --graphs, which adds graphs to the model folder."
        )
    if graphs:
        return _add_graphs(model)
    return _export_onnx(model or None, onnx) if onnx else _export_hf(model or None, hf)


def _export_onnx(model: str | None, file: str) -> Outcome:
    from patchifier.integrations.onnx import export
    from patchifier.jobs import file_lock

    with file_lock(Path(file), "export"):
        path = export(model, file)
    size = path.stat().st_size
    return Outcome({"onnx": str(path), "bytes": size}, f"{path}, {size / 1e6:.1f} MB")


def _export_hf(model: str | None, folder: str) -> Outcome:
    from patchifier.integrations.hf import HubModel

    HubModel.from_pretrained(model).save_pretrained(folder)
    return Outcome(
        {"hf": folder}, f"{folder}: AutoModel.from_pretrained({folder!r}, trust_remote_code=True)"
    )


def _add_graphs(model: str) -> Outcome:
    from patchifier import weights
    from patchifier.checkpoint import add_graphs

    paths = add_graphs(model or weights.DEFAULT)
    sizes = [path.stat().st_size for path in paths]
    lines = [f"{path}, {size / 1e6:.1f} MB" for path, size in zip(paths, sizes, strict=True)]
    return Outcome({"graphs": list(map(str, paths)), "bytes": sum(sizes)}, "\n".join(lines))

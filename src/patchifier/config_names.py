"""Names and values that config fields had in the first edition: one table, both ways.

Files that hold old names are read. Identities are hashes of the old form, so vectors, caches and
runs made before are still recognised. Standard library only.
"""

import copy
from collections.abc import Iterator
from typing import Any

RENAMED = {
    "spectrogram.bands": "spectrogram.n_mels",  # counted pitch bands too
    "spectrogram.pitch_bands": "spectrogram.n_pitch_bands",
    "spectrogram.hop": "spectrogram.hop_length",
    "spectrogram.floor_db": "spectrogram.min_db",
    "spectrogram.scale": "spectrogram.db_scale",
    "model.bands": "spectrogram.n_mels",
    "model.pitch_bands": "spectrogram.n_pitch_bands",
    "model.frames": "model.patch_frames",
    "model.positions": "model.max_patches",
    "model.convolutions": "model.n_convolutions",
    "model.vector": "model.map_pooling",
    "model.width": "model.embed_dim",
    "model.layers": "model.n_layers",
    "model.heads": "model.n_heads",
    "model.feed_forward": "model.mlp_dim",
    "model.embedding": "model.position_embedding",
    "model.predictor_layers": "model.n_predictor_layers",
    "model.norm": "model.norm_first",
    "model.readout": "embed.whiten",  # was the length of what is whitened; 0 for none
    "model.components": "embed.n_components",  # was a pair: how many become how many
    "augment.scale": "augment.time_stretch",
    "augment.pitch": "augment.pitch_shift",
    "training.batch": "training.batch_size",
    "training.warm_up_steps": "training.warmup_steps",
    "training.clip_norm": "training.max_grad_norm",
    "pretrain.extractor_rate": "pretrain.extractor_lr_scale",
    "pretrain.patches": "pretrain.n_patches",
    "pretrain.mask_ends": "pretrain.visible_span_ratio",
    "pretrain.loss_on": "pretrain.loss_patches",
    "pretrain.extract": "pretrain.extracted_patches",
    "pretrain.targets": "pretrain.objectives",
    "pretrain.contrast_of": "pretrain.contrast_positives",
    "pretrain.target": "pretrain.reconstruction_target",
    "pretrain.parts": "pretrain.n_cache_parts",
    "finetune.try_rates": "finetune.learning_rates",
    "finetune.select": "finetune.select_by",
    "finetune.readout": "finetune.pooling",
    "finetune.seeds": "finetune.n_seeds",
    "embed.time": "embed.whole_clip",
}
"""Old name to new name. "training" stands for `pretrain.stage_one`, `pretrain.stage_two` and
`finetune.training`."""

VALUES: dict[str, dict[Any, Any]] = {
    "model.norm": {"after": False, "before": True},
    "embed.time": {"windows": False, "whole": True},
}
"""Old value to new value, by the old name."""

FIXED: dict[str, Any] = {
    "spectrogram.pitch_n_fft": 8192,
    "spectrogram.pitch_per_octave": 36,
    "spectrogram.pitch_f_min_hz": 55.0,
    "model.pitch_channels": 64,
    "model.extractor_layers": 2,
    "pretrain.teacher_decay": 0.996,
}
"""Old names of what is a constant now, with its value."""

REMOVED: dict[str, Any] = {"embed.max_z_score": 0.0}
"""Fields of version 0.3 that no model used, with the value that all models had."""

TRAININGS = {"pretrain": ("stage_one", "stage_two"), "finetune": ("training",)}
MOVED = ("model.bands", "model.pitch_bands", "model.readout", "model.components")
BANDS = 64  # the first edition's default of spectrogram.bands

Values = dict[str, Any]


def table_name(dotted: str) -> str:
    """Name of a field in the tables: "pretrain.stage_one.batch" is "training.batch"."""
    section, _, name = dotted.partition(".")
    loop, _, field = name.partition(".")
    return f"training.{field}" if field and loop in TRAININGS.get(section, ()) else dotted


def new_name(dotted: str) -> str | None:
    """Return the dotted name that a field of the first edition has now; None if it is not old.

    A field that is a constant now has the empty name.
    """
    name = table_name(dotted)
    if name in FIXED | REMOVED:
        return ""
    if name not in RENAMED:
        return None
    if name == dotted:
        return RENAMED[name]
    return dotted.rpartition(".")[0] + "." + RENAMED[name].rpartition(".")[2]


def with_new_names(values: Values) -> Values:
    """Replace old names and values in a config, or in a part of one, nested as a `Config`.

    A ValueError says that a field is given by both names, a constant has another value, or the
    spectrogram and the model have different numbers of bands.
    """
    values = copy.deepcopy(values)
    _move_bands(values)
    _move_whitening(values)
    for path, section in _sections(values):
        renamed = _renamed(section, path)
        section.clear()
        section.update(renamed)
    return values


def _sections(values: Values) -> Iterator[tuple[str, Values]]:
    """Name in the tables and fields of each section and of each training."""
    for name in ("spectrogram", "model", "augment", "pretrain", "finetune", "embed"):
        section = _section(values, name)
        yield from (("training", _section(section, loop)) for loop in TRAININGS.get(name, ()))
        yield name, section


def _renamed(section: Values, path: str) -> Values:
    renamed: Values = {}
    for name, value in section.items():
        old = f"{path}.{name}"
        if old in FIXED | REMOVED:
            now = (FIXED | REMOVED)[old]
            _require(value == now, f"{old} is {value!r}, but is always {now!r} now.")
            continue
        new = RENAMED.get(old, old).rpartition(".")[2]
        _require(new not in renamed, f"{path}.{new} is given twice: by this name and as {old}.")
        known = VALUES.get(old, {})
        renamed[new] = known.get(value, value) if isinstance(value, str) else value
    return renamed


def _move_bands(values: Values) -> None:
    """Take the numbers of bands from the model, which stated them too; count mel bands alone."""
    model = _section(values, "model")
    for name in ("bands", "pitch_bands"):
        if name in model:
            values.setdefault("spectrogram", {})
            spectrogram = _section(values, "spectrogram")
            same = spectrogram.setdefault(name, model[name]) == model.pop(name)
            _require(same, f"spectrogram.{name} and model.{name} must be the same.")
    spectrogram = _section(values, "spectrogram")
    if "bands" in spectrogram or "pitch_bands" in spectrogram:
        n_bands, n_pitch = spectrogram.pop("bands", BANDS), spectrogram.get("pitch_bands", 0)
        counted = isinstance(n_bands, int) and isinstance(n_pitch, int)
        spectrogram["bands"] = n_bands - n_pitch if counted else n_bands


def _move_whitening(values: Values) -> None:
    """Turn lengths of what is whitened, stated by the model, into fields of the embedding."""
    model = _section(values, "model")
    if not {"readout", "components"} & model.keys():
        return
    values.setdefault("embed", {})
    embed = _section(values, "embed")
    if "readout" in model:
        embed["whiten"] = bool(model.pop("readout"))
    if "components" in model:
        pair = model.pop("components")
        embed["n_components"] = pair[-1] if isinstance(pair, list | tuple) and pair else pair


def _section(values: Values, name: str) -> Values:
    found = values.get(name)
    return found if isinstance(found, dict) else {}  # update() refuses what is no dict


def with_old_names(section: Values, path: str) -> Values:
    """Return a section of a config with the names and values of the first edition.

    The caller adds what that edition computed otherwise (:data:`MOVED` and the number of bands).
    """
    old_names = {new: old for old, new in RENAMED.items() if old not in MOVED}
    old: Values = {}
    for name, value in section.items():
        if isinstance(value, dict):
            old[name] = with_old_names(value, "training")
            continue
        name_then = old_names.get(f"{path}.{name}", f"{path}.{name}")
        values = {new: then for then, new in VALUES.get(name_then, {}).items()}
        old[name_then.rpartition(".")[2]] = values.get(value, value) if values else value
    return old


def fixed_values(path: str) -> Values:
    """Constants that were fields of a section, by their old names."""
    names = [name for name in FIXED if name.startswith(f"{path}.")]
    return {name.removeprefix(f"{path}."): FIXED[name] for name in names}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

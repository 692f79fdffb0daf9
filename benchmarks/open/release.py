"""Copy a trained model into the package: weights in half precision, and a card of training data, cost and results.

    python benchmarks/open/release.py RUN/model NAME --root ROOT --scores JUDGED

NAME is a section of release.toml, ROOT the folder that build.py filled, JUDGED the folder that judge.py wrote about this model. The training data is
read from the model's own facts and from RUN/run.json. With another table, the command writes another card beside the same weights.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretraining
import torch
from card import Cost, TrainingData, masked_lines, portable, write_card
from groups import CODED, read_manifest
from outcome import Outcome

from patchifier import checkpoint, datasets, embed, weights
from patchifier.checkpoint import Checkpoint, embedder_of
from patchifier.config import Config, RequestError, update
from patchifier.io import replaced_file, replaced_folder
from patchifier.nn.encode import model_hash

LARGEST_PARAMETERS = 10_000_000
LARGEST_B = 20_000_000
HERE = Path(__file__).parent
STEPS = "steps, stage "  # how training names its facts


def release(
    model: Path,
    name: str,
    root: Path,
    *,
    scores: Path | None = None,
    reconstruction: Path | None = None,
    before: Sequence[Path] = (),
    list_name: str = "",
    home: Path = weights.ROOT,
) -> tuple[Path, str]:
    """Write a model folder of the package, whole or not at all.

    Parameters
    ----------
    model : Path
        Model folder, its run's ``run.json`` beside it.
    name : str
        Name of the model; release.toml has its text.
    root : Path
        Folder that build.py filled, with the list for pre-training.
    scores : Path
        Folder that judge.py wrote; without it the card says that there is no result.
    reconstruction : Path
        Folder that reconstruction.py wrote about this model; without it the card has no section about masked patches.
    before : sequence of Path
        Model folders that this one was started from, the first run first.
    list_name : str
        Name of the list in `root`; by default that of the data set that the model was trained on.
    home : Path
        Folder of the released models.

    Returns
    -------
    folder : Path
    moved : str
        How far half precision moves vectors, as text.

    Raises
    ------
    RequestError
        If the model is too large or has a head, if its training is not fully known, if its training data has forbidden clips, or if the table is about others.
    """
    # 1. facts
    texts, held = read_texts(name), checkpoint.load(model)
    chain = [*((folder, checkpoint.load(folder)) for folder in before), (model, held)]
    runs = [read_run(folder) for folder, _ in chain]
    named = [
        *(f"{each.facts.get('dataset')}.jsonl" for _, each in chain[:-1]),
        list_name or f"{held.facts.get('dataset')}.jsonl",
    ]
    lists = [read_list(root, each) for each in dict.fromkeys(named)]
    data = TrainingData(
        " and ".join(each.name for each in lists),
        list({row["path"]: row for each in lists for row in each.rows}.values()),
    )
    # 2. checks
    for each, (folder, made) in zip(named, chain, strict=True):
        count, held_rows = (
            sum((made.facts.get("clips") or {}).values()),
            len(next(found for found in lists if found.name == each).rows),
        )
        if count > held_rows:
            raise RequestError(
                f"{folder} was trained on {count:,} clips, expected at most the {held_rows:,} of {each}: name its list."
            )
    require_fit(model, held, runs)
    if not any((root / "tasks").glob("*.jsonl")):
        raise RequestError(
            f"{root} has no tasks, expected what build.py made: without them the training data cannot be checked for test clips."
        )
    pretraining.check(root, [each.name for each in lists])
    table = read_table(scores, name, model) if scores else "No result yet."
    masked = read_reconstruction(reconstruction, held) if reconstruction else []
    # 3. files
    cost = count_cost(chain, runs)
    released = {
        "name": name, "date": str(datetime.date.today()), "hours": round(data.hours, 1), "list": data.name, "clips trained on": cost.clips,
        "share of the paper": float(f"{cost.share:.2g}"), "minutes": round(cost.minutes, 1), "commit": commit(),
    }  # fmt: skip
    facts = portable(dict(held.facts)) | released
    earlier = [
        portable(run | dict(each.facts))
        for run, (_, each) in zip(runs[:-1], chain[:-1], strict=True)
    ]
    replaced = identity_of(home / name)
    with replaced_folder(home / name) as new:
        made = Checkpoint(held.model, portable_config(held.config), facts=facts)
        checkpoint.save(new, made, dtype=torch.float16)
        size = (new / "model.safetensors").stat().st_size
        if size > LARGEST_B:
            raise RequestError(
                f"{name} takes {size / 1e6:.1f} MB in half precision, expected at most {LARGEST_B / 1e6:.0f}."
            )
        moved = compare_vectors(held, checkpoint.load(new))
        card = write_card(
            name,
            embedder_of(held),
            texts,
            data,
            cost,
            table,
            masked,
            facts | {"half precision": moved},
            [*earlier, portable(runs[-1])],
        )
        (new / "README.md").write_text(card, encoding="utf-8")
        (new / "model.safetensors").chmod(0o644)  # as written it is for its owner alone
    keep_older(home, name, replaced)
    return home / name, moved


def portable_config(config: Config) -> Config:
    """Return the config without the paths of one machine; no vector depends on them."""
    folders = {
        name: portable(getattr(config.pretrain, name))
        for name in ("note_labels", "teacher_features")
    }
    return update(config, {"pretrain": folders})


def identity_of(folder: Path) -> str | None:
    """Identity of the model that is to be replaced; None if there is none that can be read."""
    try:
        return embed.load(folder).identity
    except RequestError:
        return None


def keep_older(home: Path, name: str, replaced: str | None) -> None:
    """Add a replaced model to those of older versions, so that its tables are refused with a reason."""
    path, now = home / weights.OLDER, embed.load(home / name).identity
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {
        identity: each
        for identity, each in (before | ({replaced: name} if replaced else {})).items()
        if identity != now
    }
    if known != before:
        with replaced_file(path) as new:
            new.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


# --- facts ---


def read_texts(name: str) -> dict[str, Any]:
    """Return the texts of a model in release.toml: its own, then those of every model."""
    sections = tomllib.loads((HERE / "release.toml").read_text(encoding="utf-8"))
    shared = sections.pop("all")
    if name not in sections:
        raise RequestError(
            f"release.toml has no section {name!r}, expected one of {', '.join(sections)}: write its summary and its limits there."
        )
    return {key: [*sections[name].get(key, []), *texts] for key, texts in shared.items()} | {
        "summary": sections[name]["summary"]
    }


def read_run(model: Path) -> dict[str, Any]:
    """Read the facts of the run that made a model."""
    path = model.resolve().parent / "run.json"
    if not path.exists():
        raise RequestError(
            f"{path.parent.name}/run.json is missing, expected the run's facts beside its model: name the model where training left it."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_list(root: Path, name: str) -> TrainingData:
    """Read a list for pre-training; every row needs its length, kind and licence."""
    lists = sorted(path.name for path in root.glob("pretraining*.jsonl"))
    if name not in lists:
        raise RequestError(
            f"{name} is no list in {root}, expected one of {', '.join(lists) or 'them: build it'}. Name it with --list."
        )
    rows = read_manifest(root / name)
    for row in rows:
        lacks = {
            "seconds",
            "kind",
            "licence",
            "group",
            *(["source"] if row.get("kind") in ("recordings", CODED) else []),
        } - row.keys()
        if lacks:
            raise RequestError(
                f"{name}: {row.get('path')} does not say its {', '.join(sorted(lacks))}, expected a list that build.py wrote."
            )
    return TrainingData(name, rows)


def read_table(scores: Path, name: str, model: Path) -> str:
    """Return the tables that judge.py wrote, with this model under its released name."""
    if not (scores / "results.json").exists():
        raise RequestError(
            f"{scores} holds no results.json, expected a folder that judge.py wrote."
        )
    found = json.loads((scores / "results.json").read_text(encoding="utf-8"))
    rows = {row["encoder"]: [row["encoder"]] for row in found["scores"]} | found.get("runs", {})
    ours = [
        row
        for row, specs in rows.items()
        if any(Path(spec).resolve() == model.resolve() for spec in specs)
    ] or [row for row in rows if row == name]
    if not ours:
        raise RequestError(
            f"{scores} is not about {name}, expected a run of judge.py with --encoders {model} or {name}."
        )
    if len(ours) > 1 or (name in rows and name not in ours):
        raise RequestError(
            f"{scores} has several rows that would be called {name}: {', '.join({*ours, name} & rows.keys())}. Run judge.py without the others."
        )

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {named(key): named(each) for key, each in value.items()}
        if isinstance(value, list):
            return [named(each) for each in value]
        if isinstance(value, str):
            for spec in (*ours, *rows[ours[0]]):  # a row, or a note about it
                value = (
                    name
                    if value == spec
                    else value.replace(f"{spec}:", f"{name}:").replace(
                        f"{spec} is the mean of", f"{name} is the mean of"
                    )
                )
        return value

    shown = portable(named(found))
    return Outcome(**shown | {"notes": list(dict.fromkeys(shown["notes"]))}).markdown().strip()


def read_reconstruction(folder: Path, held: Checkpoint) -> list[str]:
    """Return the card's section about masked patches, if reconstruction.py measured these weights."""
    try:
        found = json.loads((folder / "reconstruction.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"{folder} holds no reconstruction.json, expected a folder that reconstruction.py wrote."
        ) from error
    if found["weights"] != model_hash(held.model):
        raise RequestError(
            f"{folder} was measured with other weights, expected a run of reconstruction.py on this model."
        )
    return masked_lines(found["rows"], found["side"])


def commit() -> str:
    """Return the commit of this code, and whether it was changed since, models and their stored vectors excluded."""
    where = ["git", "-C", str(HERE.parents[1])]
    head = subprocess.run(
        [*where, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        [
            *where,
            "status",
            "--porcelain",
            "--",
            "src",
            "benchmarks",
            "recipes",
            ":!src/patchifier/weights/*/*",
            f":!src/patchifier/weights/{weights.OLDER}",
        ],
        capture_output=True,
        check=False,
    )
    return (
        "unknown"
        if head.returncode
        else head.stdout.strip() + (", changed since" if changed.stdout else "")
    )


def count_cost(chain: Sequence[tuple[Path, Checkpoint]], runs: Sequence[Mapping[str, Any]]) -> Cost:
    """Count the steps, clips and minutes of all runs."""
    steps: dict[str, int] = {}
    clips = 0
    for _, held in chain:
        for fact, count in held.facts.items():
            if fact.startswith(STEPS):
                stage = fact.removeprefix(STEPS)
                steps[f"stage {stage}"] = steps.get(f"stage {stage}", 0) + count
                clips += count * getattr(held.config.pretrain, f"stage_{stage}").batch_size
    machines = tuple(dict.fromkeys(str(run.get("machine")) for run in runs))
    return Cost(steps, clips, sum(run["seconds"] for run in runs) / 60, machines)


# --- checks ---


def require_fit(model: Path, held: Checkpoint, runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model that is too large or fine-tuned, or whose training is not fully known."""
    count = held.model.parameter_count()
    if count > LARGEST_PARAMETERS:
        raise RequestError(
            f"{model} has {count:,} parameters, expected at most {LARGEST_PARAMETERS:,}."
        )
    if held.task is not None:
        raise RequestError(f"{model} was fine-tuned, expected a pre-trained model.")
    if not any(fact.startswith(STEPS) for fact in held.facts):
        raise RequestError(
            f"{model} does not say how many steps it was trained for, expected facts such as '{STEPS}two'."
        )
    if "--init" in str(runs[0].get("command")).replace("=", " ").split():
        raise RequestError(
            f"{model} was started from another model ({portable(runs[0]['command'])}): name that one with --before."
        )
    for run in runs:
        if run.get("state") != "finished":
            raise RequestError(
                f"{model}: its run is {run.get('state')}, expected a finished one: resume it."
            )


def compare_vectors(whole: Checkpoint, half: Checkpoint, clips: int = 14) -> str:
    """Measure how far half precision moves the vectors of bundled clips."""
    paths = [clip.path for clip in datasets.load("demo").clips][:: 112 // clips]
    one, two = (embedder_of(held).embed(paths).astype(np.float64) for held in (whole, half))
    share = np.linalg.norm(one - two, axis=1) / np.linalg.norm(one, axis=1)
    return f"moves vectors of {len(paths)} bundled clips by at most {100 * share.max():.2g} % of their length"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder that training wrote")
    parser.add_argument("name", help="name of the released model; a section of release.toml")
    parser.add_argument("--root", type=Path, required=True, help="folder that build.py filled")
    parser.add_argument("--scores", type=Path, help="folder that judge.py wrote about this model")
    parser.add_argument(
        "--reconstruction", type=Path, help="folder that reconstruction.py wrote about this model"
    )
    parser.add_argument(
        "--before",
        type=Path,
        nargs="+",
        default=[],
        help="models that this one was started from, the first run first",
    )
    parser.add_argument(
        "--list",
        default="",
        help="name of the pre-training list in ROOT (that of the model's data set)",
    )
    arguments = parser.parse_args()
    try:
        folder, moved = release(
            arguments.model,
            arguments.name,
            arguments.root,
            scores=arguments.scores,
            reconstruction=arguments.reconstruction,
            before=arguments.before,
            list_name=arguments.list,
        )
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e6:.1f} MB; half precision {moved}.")
    print(f"Next: python tests/golden/make.py {arguments.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

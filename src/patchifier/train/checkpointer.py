"""Checkpoints of a training loop: state, weights and optimiser moments in one file."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from patchifier.checkpoint import write_tensors
from patchifier.config import RequestError, TrainingConfig
from patchifier.io import parse_json, replaced_file, require_file
from patchifier.jobs import STATE_FILE, has_state
from patchifier.train.run import is_first


@dataclass
class State:
    """Progress of a training loop: what a checkpoint holds besides weights and optimiser."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    finished: bool = False
    total: int = 0

    def improve(self, score: float) -> bool:
        """Record the score of a validation; returns whether it is the best so far."""
        better = score > self.best_score
        if better:
            self.best_score, self.best_step = score, self.step
        return better


def set_length(state: State, total: int, config: TrainingConfig, folder: Path) -> None:
    """Set the number of steps, which may differ from that of the interrupted run.

    Refused if the learning rate of steps already taken would have been another one.
    """
    if state.total not in (0, total):
        flat = min(config.flat_steps(state.total), config.flat_steps(total))
        if state.step > flat:
            raise RequestError(
                f"{folder} is at step {state.step} of {state.total}, expected at most {flat} for "
                f"a change to {total} steps: "
                "after it the learning rate falls. Resume with the run's own config.json."
            )
        state.finished = False
    state.total = total


def saved_step(folder: Path) -> int:
    """Step of the checkpoint in a folder; 0 without one that can be read."""
    try:
        with safetensors.safe_open(folder / STATE_FILE, framework="np") as file:
            return int(parse_json(file.metadata()["state"])["step"])
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return 0


def resumption(run: Path, *, began: bool) -> str:
    """Say from which step a pre-training goes on; empty for one that begins.

    `began` is whether it was begun before, perhaps without a checkpoint.
    """
    for stage, name in (("two", "II"), ("one", "I")):
        if step := saved_step(run / f"stage-{stage}"):
            return f"goes on from step {step:,} of stage {name}; "
    return "no state saved yet: starts again; " if began and not has_state(run) else ""


class Checkpointer:
    """Saves and loads a training run as one safetensors file, which is replaced atomically."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        settings: Sequence[str],
    ) -> None:
        self.path, self.settings = folder / STATE_FILE, settings
        self.model, self.optimiser = model, optimiser
        self.best: dict[str, Tensor] = {}

    def keep_best(self) -> None:
        """Keep a copy of the current weights as the best."""
        weights = self.model.state_dict().items()
        self.best = {name: tensor.detach().clone() for name, tensor in weights}

    def save(self, state: State) -> None:
        """Write the checkpoint.

        Of several processes, which all hold the same state, the first does.
        """
        if not is_first():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"state": json.dumps(dataclasses.asdict(state)), "settings": self.settings[0]}
        with replaced_file(self.path) as new:
            write_tensors(new, tensors, metadata=metadata)

    def load(self) -> State:
        """Restore weights and moments; returns a new state if nothing was saved.

        A damaged file, or one of other settings, is refused.
        """
        if not self.path.exists():
            return State()
        try:
            require_file(self.path)
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                # Copied: Windows does not replace a file that is mapped into memory.
                names = list(file.keys())  # the file is not a dict
                tensors = {name: file.get_tensor(name).clone() for name in names}
            settings, state = metadata["settings"], metadata["state"]
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{self.path} is damaged ({error}): delete it to start this part again."
            ) from error
        if settings not in self.settings:
            raise RequestError(
                f"{self.path} belongs to other settings: resume with the run's own config.json."
            )
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [each for group in self.optimiser.param_groups for each in group["params"]]
        for name, tensor in parts["optimiser"].items():
            index, kind = name.split(".")
            like = parameters[int(index)]
            # The fused step needs moments in the memory format of their parameter (channels last),
            # not of the file.
            if tensor.shape == like.shape:
                tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
            moments.setdefault(int(index), {})[kind] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        return State(**parse_json(state))

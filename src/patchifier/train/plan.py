"""How long a pre-training will be: steps of each stage, and passes through the clips."""

from patchifier.config import PretrainConfig


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

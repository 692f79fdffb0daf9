"""What the commands share: making flags, reading them, printing results."""

import json
from typing import Any

import jsonargparse

from patchifier.config import Config, read_changes, to_dict, update

Flags = dict[str, Any]


def add_command(commands: Any, name: str, description: str) -> jsonargparse.ArgumentParser:
    """Add a command."""
    command = jsonargparse.ArgumentParser(description=description, allow_abbrev=False)
    commands.add_subcommand(name, command, help=description)
    return command


def add_common(command: jsonargparse.ArgumentParser, **sections: type) -> None:
    """Add what every command has, and the fields of some sections of the config as flags."""
    command.add_argument(
        "--json",
        action="store_true",
        help="Print results as JSON, and nothing else, on standard output.",
    )
    if sections or (command.description or "").startswith("The whole"):
        command.add_argument(
            "--config",
            type=str,
            default="",
            help="Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.",
        )
    for name, section in sections.items():
        command.add_class_arguments(section, name)


def configure(base: Config, flags: Flags) -> Config:
    """Change a config by a file and then by flags."""
    if flags.get("config"):
        base = update(base, read_changes(flags["config"]))
    sections = {name: flags[name] for name in to_dict(base) if isinstance(flags.get(name), dict)}
    return update(base, sections)


def say(flags: Flags, results: Any, text: str) -> None:
    """Print results for people, or as JSON."""
    print(json.dumps(results, indent=1) if flags.get("json") else text)


def results_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows of results out for a terminal."""
    width = max([12, *(len(row["encoder"]) + 2 for row in rows)])
    head = f"{'encoder':<{width}}{'method':<20}{'metric':<10}{'value':>7}   95 % interval     n"
    body = [
        f"{r['encoder']:<{width}}{r['method']:<20}{r['metric']:<10}{r['value']:>7.3f}   [{r['low']:.3f}, {r['high']:.3f}]  {r['n']:>4}"
        for r in rows
    ]
    return "\n".join([head, *body])

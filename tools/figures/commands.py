"""The reference of the command line: what ``--help`` prints, a section for each command."""

import os
from pathlib import Path

from patchifier import cli
from patchifier.cli.command import parser

COLUMNS = 86


def make(out: Path) -> None:
    """Write commands.md, a part of the page api/commands.md."""
    os.environ["COLUMNS"] = str(COLUMNS)
    lines = []
    for title, group in cli.GROUPS.items():
        lines += [f"## {title}: {cli.PURPOSES[title]}", ""]
        for command in group:
            text = parser(command).format_help().rstrip()
            lines += [f"### {command.__name__}", "", "```text", text, "```", ""]
    (out / "commands.md").write_text("\n".join(lines), encoding="utf-8")

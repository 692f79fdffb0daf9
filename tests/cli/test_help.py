"""What ``--help`` says: a synopsis, units, no markup, and examples that work."""

import re
import shlex

import pytest

from patchifier import cli
from patchifier.cli.command import parse, parser
from patchifier.cli.help import examples

COMMANDS = sorted(cli.COMMANDS)
LINE = re.compile(r"^ +\$ patchifier (.+)$", re.MULTILINE)


def help_of(name):
    return parser(cli.COMMANDS[name]).format_help()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_examples_and_each_parses(name):
    lines = LINE.findall(examples(cli.COMMANDS[name]))
    assert len(lines) >= 2
    for line in lines:
        command, *words = shlex.split(line)
        parse(cli.COMMANDS[command], words)
        assert f"$ patchifier {line}\n" in help_of(name)
    assert sum(line.split()[0] == name for line in lines) >= 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_no_markup(name):
    text = help_of(name)
    assert not re.search(r"`|(?<!\w):\w+:|^ *\.\. ", text, re.M)
    assert text.startswith(f"usage: patchifier {name}")
    assert text.index("\noptions:") < text.index("\nexamples:")


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_have_units_and_the_synopsis_what_is_required(name):
    text = help_of(name)
    flags = re.findall(r"^  (--\S+_(?:s|hz|db)) ([A-Z]+)", text, re.MULTILINE)
    units = {"s": "SECONDS", "hz": "HZ", "db": "DB"}
    for flag, word in flags:
        assert word == units[flag.rpartition("_")[2]], flag
    required = re.findall(r"^  (--\w+) (?:.|\n   )+?Required\.", text, re.MULTILINE)
    synopsis = text.partition("\n\n")[0]
    assert all(f" {flag} " in synopsis for flag in required)


def test_some_flags_have_units():
    assert "--window_s SECONDS" in help_of("embed")
    assert "--spectrogram.f_max_hz HZ" in help_of("prepare")
    assert "--augment.time_stretch [ITEM,...]" in help_of("pretrain")
    assert "(default: [0.9, 1.2])" in help_of("pretrain")


@pytest.mark.parametrize("title", cli.GROUPS)
def test_the_help_of_a_group_shows_its_commands_with_an_example_each(title, run):
    shown = run(title).out
    for command in cli.GROUPS[title]:
        assert re.search(
            rf"^  {command.__name__}\b.+\n +\$ patchifier {command.__name__}\b", shown, re.M
        )
    assert run(f"{title} --help").out == shown


def test_the_first_steps_of_the_overview_parse():
    assert len(cli.FIRST_STEPS) == 3
    for step in cli.FIRST_STEPS:
        name, *words = shlex.split(step)
        parse(cli.COMMANDS[name], words)
        assert f"$ patchifier {step}" in cli.overview()

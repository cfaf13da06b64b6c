"""The console command: finds the app of a command and answers --help without loading anything heavy."""

from __future__ import annotations

import ast
import importlib
import os
import select
import shlex
import sys
from pathlib import Path

from toa_exp.errors import BadInput, ToaError, Unread, choose

CONF = Path(__file__).parent / "conf"
_COMMANDS = Path(__file__).parent / "commands"
_HELP = {"-h", "--help"}
_UNREAD = 141  # as a shell says that a program was ended by SIGPIPE


def main() -> None:
    """Run `toa-exp <command> [overrides]`; exit status 0 done, 1 failed (resumable), 2 bad input.

    141 where nobody reads what it prints any more.
    """
    try:
        status = _status(sys.argv[1:])
        print(end="", flush=True)
    except (BrokenPipeError, Unread):
        if not unread():
            raise
        # What is still to be written must go somewhere, else Python complains of it when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            if unread(number):
                os.dup2(nowhere, number)
        status = _UNREAD
    sys.exit(status)


def unread(number: int = 1) -> bool:
    """Whether whoever read standard output, or another open file, has had enough: `toa-exp ... | head`."""
    poll = select.poll()
    poll.register(number, 0)  # errors are told without being asked for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _status(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except ToaError as error:
        print(f"toa-exp: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        from toa_exp.redact import without_secrets

        command = shlex.join(without_secrets(arguments))
        print(f"toa-exp: stopped; go on with: toa-exp {command}", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    commands = sorted(path.stem for path in _COMMANDS.glob("[a-z]*.py"))
    if not arguments or arguments[0] in _HELP:
        print(_overview(commands))
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in commands:
        raise choose("command", command, commands)
    if _HELP & set(rest):
        print(_help(command, rest))
        return 0
    app = importlib.import_module(f"toa_exp.commands.{command}")
    status: int = app.main(rest)
    return status


def _description(command: str) -> str:
    """The docstring of a command's module, read without importing it."""
    source = (_COMMANDS / f"{command}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _overview(commands: list[str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {command:{width}} {_description(command).splitlines()[0]}" for command in commands]
    return "\n".join(
        ["Usage: toa-exp <command> [overrides]", "", *lines, "", "toa-exp <command> --help says more."]
    )


def _help(command: str, arguments: list[str]) -> str:
    """What a command does, its own configuration with comments, and the groups it composes.

    Of a choice among the arguments (`method=toa`) its fields are shown.
    """
    name = "config" if command == "run" else command
    path = CONF / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"the command {command!r} has no configuration {path.name}")
    text = path.read_text(encoding="utf-8").split("\nhydra:")[0].strip()
    parts = [f"toa-exp {command}: {_description(command)}"]
    choices = group_choices()
    groups = [group for group in choices if f"- {group}:" in text]
    if groups:
        parts.append(
            "Groups and their choices. group=choice chooses, group.field=value sets a field;\n"
            f"toa-exp {command} group=choice --help shows the fields."
        )
        parts.append("\n".join(f"  {group:10} {', '.join(choices[group])}" for group in groups))
    for group, _, choice in (argument.partition("=") for argument in arguments):
        if group in groups:
            if choice not in choices[group]:
                raise choose(f"choice of {group}:", choice, choices[group])
            fields = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8").strip()
            parts.append(f"Fields of {group}={choice}:\n" + "\n".join(f"  {f}" for f in fields.splitlines()))
    parts.append(f"Configuration, from conf/{path.name}:")
    parts.append("\n".join(f"  {line}" for line in text.splitlines()))
    parts.append(
        "Flags: -m runs every combination of comma-separated values, --cfg job prints the configuration,\n"
        "--config-dir <folder> adds YAMLs of your own."
    )
    return "\n\n".join(parts)


def group_choices() -> dict[str, list[str]]:
    """The configuration groups, each with its choices."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }

"""The page of the command line, written from the program before the site is built: no line of it is kept by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from isthmus.cli.app import COMMANDS, SAYS, _app, _loaded
from isthmus.cli.told import EXAMPLES, FAILS
from isthmus.connectors import METHODS
from isthmus.storage.methods import options_of


def page() -> str:
    """All commands, and the methods that they take."""
    top = typer.main.get_command(_app())
    context = top.make_context("isthmus", [], resilient_parsing=True)
    lines = ["# Command line", SAYS, _table("Options of all commands", _records(top, context, "option"))]
    lines += [
        "Every command exits with 0 when it is done, 2 for misuse, with one line on stderr that says what was expected "
        "and what to write instead, and 130 when it was interrupted; what was complete is then on disk. 1 is said of "
        "each command that has it."
    ]
    lines += ["\n".join(f"- [`isthmus {name}`](#isthmus-{name}): {says}" for name, (_, says) in COMMANDS.items())]
    for name in COMMANDS:
        lines += _of(name)
    return "\n\n".join([*lines, *_methods()]) + "\n"


def _of(name: str) -> Iterator[str]:
    """A command, and the commands inside it."""
    command = typer.main.get_command(_loaded(name))
    inner = getattr(command, "commands", {})
    if not inner:
        yield from _command(name, command)
        return
    yield f"## isthmus {name}\n\n{COMMANDS[name][1]}"
    for one, held in inner.items():
        yield from _command(f"{name} {one}", held, level=3)


def _command(name: str, command: Any, level: int = 2) -> Iterator[str]:
    """Help, usage, an example, arguments, options and exit codes."""
    context = command.make_context(f"isthmus {name}", [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"{'#' * level} isthmus {name}"
    yield command.help
    yield f"```text\nisthmus {name} {usage}\n```"
    yield f"Example:\n\n```shell\n{EXAMPLES[name]}\n```"
    yield _table("Argument", _records(command, context, "argument"))
    yield _table("Option", _records(command, context, "option"))
    yield "Exit codes: 0, done" + (f"; 1, {FAILS[name]}; 2, misuse." if name in FAILS else "; 2, misuse.")


def _records(command: Any, context: Any, kind: str) -> list[tuple[str, str, str]]:
    """Name, what it is, and its default, of each parameter."""
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or parameter.param_type_name != kind or parameter.name == "help":
            continue
        said, more = re.fullmatch(r"(.*?)(?:\s*\[([^\[]*)\])?", record[1], re.S).groups()  # type: ignore[union-attr]
        parts = (more or "").split("; ")
        default = "".join(part.removeprefix("default: ") for part in parts if part.startswith("default: "))
        limits = [
            part.replace("x>=", "at least ") for part in parts if part and not part.startswith(("default", "req"))
        ]
        told = said.strip() + "".join(f" {limit.capitalize()}." for limit in limits)
        name = re.sub(r"<(?:list\[)?(\w+)(?: range|\])?>", r"<\1>", record[0])
        rows.append((name, told, "required" if "required" in parts else f"`{default}`" if default else ""))
    return rows


def _table(what: str, rows: list[tuple[str, str, str]]) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    lines = [f"| `{name.replace('|', '/')}` | {_cell(said)} | {default} |" for name, said, default in rows]
    return "\n".join([f"| {what} | | default |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", r"\<").replace("*", r"\*")


def _methods() -> Iterator[str]:
    """What ``isthmus methods`` lists."""
    yield "## The methods\n\nAs `isthmus methods` lists them; `--option KEY=VALUE` sets a field."
    for method in METHODS:
        about = method.about
        options = ", ".join(f"`{k}={v}`" for k, v in options_of(method).items()) or "none"
        rows = {"makes": about.makes, "needs": about.premises, "cost": about.cost, "options": options}
        table = "\n".join(f"| {k} | {_cell(v) if k != 'options' else v} |" for k, v in rows.items())
        name = method.__name__
        yield f"### {name}\n\n{about.reference}. [`im.{name}`](api/{name}.md)\n\n| | |\n|---|---|\n{table}"


def write(file: Path) -> None:
    """Write the page, unless it is there as it shall be."""
    text = page()
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Write the page before Sphinx looks for files."""
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "command-line.md"), priority=100)
    return {"parallel_read_safe": True}

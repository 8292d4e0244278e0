"""The command line: thin, options are fields of the dataclasses they fill.

Exit codes: 0 done; 1 the method did not succeed (its result is written all the same); 2 misuse. They speak of what was
done, not of how good a path is: a straight line over a barrier was constructed as well. That is what the verdict says.

Only the command that runs is imported, so that ``isthmus --help`` need not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isthmus.cli.told import epilog
from isthmus.cli.typed import TYPED
from isthmus.errors import IsthmusError
from isthmus.version import __version__

SAYS = "Are two trained networks connected by a low-loss path? Construct it, measure it, prove it."
COMMANDS = {
    "train": ("commands", "Train a network and write its weights, with what made them."),
    "connect": (
        "commands",
        "Connect two checkpoints: construct the path, measure it, prove it, write everything to a folder.",
    ),
    "compare": (
        "theory",
        "Every method whose premises hold, on one pair: one table of what each path reaches, proves and costs.",
    ),
    "align": (
        "align",
        "Renumber the hidden units of B, C, ... to be those of A; what they compute stays the same, and is checked to.",
    ),
    "check": (
        "check",
        "May these networks be averaged or merged? Measured on every data set; exit code 0: go, 1: no-go, 2: misuse.",
    ),
    "merge": (
        "merge",
        "Merge networks, measure what came out, and write it as they came, with a card; 1 where it is above the level.",
    ),
    "graph": (
        "commands",
        "Join several checkpoints until it is known how high one must climb from each to each; write everything.",
    ),
    "methods": ("commands", "The methods: where they come from, what each makes, needs and costs, and its options."),
    "report": ("commands", "Write one self-contained HTML page from stored results."),
    "demo": (
        "commands",
        "Train two digit networks, connect them by every method that suits them, prove it, and write a report.",
    ),
    "sweep": (
        "experiments",
        "Your own sweep: every pair by every method, one row each; only what is missing is computed.",
    ),
    "theory": ("theory", "Which theorems apply to two networks: every premise measured, and the bound that follows."),
    "profile": ("paths", "Measure the loss and the error along a stored path, on the training and the test data."),
    "certify": (
        "paths",
        "Prove a bound on the loss over a stored path, or check a stored proof against the path alone.",
    ),
    "ensemble": (
        "paths",
        "How good the networks along a stored path are together: averages of probabilities and of weights.",
    ),
    "plane": ("commands", "The loss and the error on the plane through three networks, and a path on it."),
    "stability": (
        "stability",
        "How dropout stable a network is (Kuditipudi et al. 2019, Definition 1), and how noise stable (Definition 4).",
    ),
    "experiment": ("experiments", "Experiments: run, resume, tabulate, draw."),
}
"""Each command with the file that holds it and the first line of its help."""


class _Lazy(TyperGroup):
    """The commands, each imported when it is run; until then it is known by its name and one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = typer.main.get_command(_loaded(args[0]))
        return TyperGroup.resolve_command(self, ctx, args)


def _loaded(name: str) -> typer.Typer:
    """The command itself, as an application of its own."""
    module = import_module(f"isthmus.cli.{COMMANDS[name][0]}")
    if name == "experiment":
        for command in module.app.registered_commands:
            command.epilog = epilog(f"experiment {command.name or command.callback.__name__}")
        return module.app
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, epilog=epilog(name))(getattr(module, name))
    return alone


def _app() -> typer.Typer:
    made = typer.Typer(
        name="isthmus",
        help=SAYS,
        cls=_Lazy,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    made.callback()(settings)
    for name, (_, says) in COMMANDS.items():
        made.command(name, help=says)(_nothing)
    return made


def _nothing() -> None:
    """Stands for a command that is not imported."""


def _say_version(asked: bool) -> None:
    if asked:
        print(f"isthmus {__version__}")
        raise typer.Exit


def settings(
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="Threads of torch (default: all, for the demo one); cells take one each.", min=1
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Are two trained networks connected by a low-loss path? Construct it, measure it, prove it."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def run_app(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; every foreseen error is one line on stderr."""
    TYPED.set(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _app()(args=arguments, standalone_mode=False, prog_name="isthmus")
        return int(code) if isinstance(code, int) else 0
    except typer.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; results that were complete are on disk", file=sys.stderr)
        return 130
    except Exception as e:
        said = _said(e)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2


def _said(error: Exception) -> str | None:
    """What to say of an error that was foreseen."""
    if isinstance(error, IsthmusError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'files'}: {error.strerror or error}"
    message = getattr(error, "format_message", None)  # typer's usage errors, whose base class it does not export
    return None if message is None else f"{message()} (see isthmus --help)"

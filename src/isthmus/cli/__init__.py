"""The command line."""

from isthmus.cli.main import run_app as run_app

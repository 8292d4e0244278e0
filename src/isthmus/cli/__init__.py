"""The command line."""

from isthmus.cli.app import run_app as run_app

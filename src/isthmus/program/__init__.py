"""A module as a program."""

"""Moves that several constructions share."""

"""Dropout stability."""

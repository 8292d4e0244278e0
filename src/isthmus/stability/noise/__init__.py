"""Noise stability."""

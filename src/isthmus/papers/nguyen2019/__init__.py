"""Nguyen 2019."""

"""Shevchenko and Mondelli 2020."""

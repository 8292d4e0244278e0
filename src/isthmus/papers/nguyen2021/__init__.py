"""Nguyen, Brechet, Mondelli 2021."""

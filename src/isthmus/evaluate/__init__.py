"""Measuring the loss and the error along paths."""

from isthmus.evaluate.profile import Profile as Profile
from isthmus.evaluate.profile import profile as profile

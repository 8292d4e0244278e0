"""Measuring the loss and the error along paths."""

from isthmus.evaluate.band import Band as Band
from isthmus.evaluate.band import ErrorBand as ErrorBand
from isthmus.evaluate.population import population as population
from isthmus.evaluate.profile import Profile as Profile
from isthmus.evaluate.profile import profile as profile

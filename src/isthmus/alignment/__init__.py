"""Units of one network matched with those of another, so that both can be averaged, joined, and compared."""

from isthmus.alignment.activations import ActivationMatching as ActivationMatching
from isthmus.alignment.align import Alignment as Alignment
from isthmus.alignment.align import Renumbering as Renumbering
from isthmus.alignment.align import align as align
from isthmus.alignment.given import Given as Given
from isthmus.alignment.many import align_many as align_many
from isthmus.alignment.matching import Matching as Matching
from isthmus.alignment.weights import WeightMatching as WeightMatching

MATCHINGS: tuple[type[Matching], ...] = (ActivationMatching, WeightMatching, Given)
"""All ways to match units: laws, command line, and documentation run over this tuple."""

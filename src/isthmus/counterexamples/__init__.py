"""Networks and data for which a theorem of the papers says that paths cannot exist."""

from isthmus.counterexamples.disconnected import Disconnected as Disconnected
from isthmus.counterexamples.disconnected import disconnected as disconnected
from isthmus.counterexamples.gaussian_mixture import GaussianMixture as GaussianMixture
from isthmus.counterexamples.gaussian_mixture import gaussian_mixture as gaussian_mixture
from isthmus.counterexamples.permutation import Permutation as Permutation
from isthmus.counterexamples.permutation import permutation as permutation
from isthmus.counterexamples.search import Found as Found
from isthmus.counterexamples.search import smallest_found as smallest_found

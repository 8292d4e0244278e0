"""Every method on one pair, in one table."""

from isthmus.comparison.run import compare as compare
from isthmus.comparison.table import Comparison as Comparison
from isthmus.comparison.table import ComparisonRow as ComparisonRow

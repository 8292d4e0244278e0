"""Many trained networks at once: which paths between them are low, and how high one must climb from each to each."""

from isthmus.graph.minima import Edge as Edge
from isthmus.graph.minima import MinimaGraph as MinimaGraph
from isthmus.graph.minima import Minimum as Minimum
from isthmus.graph.search import GraphOptions as GraphOptions
from isthmus.graph.search import minima_graph as minima_graph
from isthmus.graph.stored import load_graph as load_graph

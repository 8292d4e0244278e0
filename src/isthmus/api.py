"""All public names of the package, ``isthmus.NAME``; loaded when one of them is first used, as they need torch."""

from isthmus import counterexamples as counterexamples
from isthmus import data as data
from isthmus import models as models
from isthmus.alignment import ActivationMatching as ActivationMatching
from isthmus.alignment import Alignment as Alignment
from isthmus.alignment import Given as Given
from isthmus.alignment import Matching as Matching
from isthmus.alignment import Renumbering as Renumbering
from isthmus.alignment import RotationMatching as RotationMatching
from isthmus.alignment import WeightMatching as WeightMatching
from isthmus.alignment import align as align
from isthmus.alignment import align_many as align_many
from isthmus.analysis.adapters import AdapterRow as AdapterRow
from isthmus.analysis.adapters import AdapterStability as AdapterStability
from isthmus.analysis.adapters import adapter_stability as adapter_stability
from isthmus.analysis.adapters import low_rank_path as low_rank_path
from isthmus.analysis.aligned_lines import AlignedLines as AlignedLines
from isthmus.analysis.aligned_lines import StraightLines as StraightLines
from isthmus.analysis.aligned_lines import aligned_lines as aligned_lines
from isthmus.analysis.barrier import Barrier as Barrier
from isthmus.analysis.barrier import BarrierMatrix as BarrierMatrix
from isthmus.analysis.barrier import barrier as barrier
from isthmus.analysis.barrier import barrier_matrix as barrier_matrix
from isthmus.analysis.blocks import BlockBarrier as BlockBarrier
from isthmus.analysis.blocks import BlockBarriers as BlockBarriers
from isthmus.analysis.blocks import block_barriers as block_barriers
from isthmus.analysis.check import Check as Check
from isthmus.analysis.check import check as check
from isthmus.analysis.contributions import Contributions as Contributions
from isthmus.analysis.contributions import contributions as contributions
from isthmus.analysis.descend import descend as descend
from isthmus.analysis.ensemble import Ensemble as Ensemble
from isthmus.analysis.ensemble import EnsembleRow as EnsembleRow
from isthmus.analysis.ensemble import ensemble as ensemble
from isthmus.analysis.fge import fast_geometric_ensemble as fast_geometric_ensemble
from isthmus.analysis.gap_by_width import gap_by_width as gap_by_width
from isthmus.analysis.geometry import Geometry as Geometry
from isthmus.analysis.geometry import geometry as geometry
from isthmus.analysis.merge import Merged as Merged
from isthmus.analysis.merge import merge as merge
from isthmus.analysis.plane import Plane as Plane
from isthmus.analysis.plane import PlaneValues as PlaneValues
from isthmus.analysis.plane import plane as plane
from isthmus.analysis.scores import Scores as Scores
from isthmus.analysis.separated import Separation as Separation
from isthmus.analysis.separated import separated as separated
from isthmus.analysis.straighten import Straightened as Straightened
from isthmus.analysis.straighten import straighten as straighten
from isthmus.analysis.subnetwork_bounds import LayerBound as LayerBound
from isthmus.analysis.subnetwork_bounds import SubnetworkBounds as SubnetworkBounds
from isthmus.analysis.subnetwork_bounds import dropout_bounds as dropout_bounds
from isthmus.analysis.subnetwork_bounds import subnetwork_bounds as subnetwork_bounds
from isthmus.analysis.task_vectors import TaskVectors as TaskVectors
from isthmus.analysis.task_vectors import task_vectors as task_vectors
from isthmus.certify import Certificate as Certificate
from isthmus.certify import certify as certify
from isthmus.certify import verify_certificate as verify_certificate
from isthmus.comparison import Comparison as Comparison
from isthmus.comparison import ComparisonRow as ComparisonRow
from isthmus.comparison import compare as compare
from isthmus.connectors import METHODS as METHODS
from isthmus.connectors import Aligned as Aligned
from isthmus.connectors import Auto as Auto
from isthmus.connectors import AutoNEB as AutoNEB
from isthmus.connectors import Bezier as Bezier
from isthmus.connectors import Connection as Connection
from isthmus.connectors import Connector as Connector
from isthmus.connectors import ConstrainedStringSampling as ConstrainedStringSampling
from isthmus.connectors import DeepLinear as DeepLinear
from isthmus.connectors import Dropout as Dropout
from isthmus.connectors import LayerWise as LayerWise
from isthmus.connectors import Linear as Linear
from isthmus.connectors import MeanField as MeanField
from isthmus.connectors import Memorised as Memorised
from isthmus.connectors import Narrow as Narrow
from isthmus.connectors import NoiseDropout as NoiseDropout
from isthmus.connectors import Outcome as Outcome
from isthmus.connectors import PolyChain as PolyChain
from isthmus.connectors import Renormalised as Renormalised
from isthmus.connectors import Separated as Separated
from isthmus.connectors import StringSampling as StringSampling
from isthmus.connectors import Sublevel as Sublevel
from isthmus.connectors import Subnetwork as Subnetwork
from isthmus.connectors import Trained as Trained
from isthmus.connectors import TwoLayerReLU as TwoLayerReLU
from isthmus.connectors import connect as connect
from isthmus.errors import CheckpointError as CheckpointError
from isthmus.errors import FileError as FileError
from isthmus.errors import InputError as InputError
from isthmus.errors import IsthmusError as IsthmusError
from isthmus.errors import IsthmusWarning as IsthmusWarning
from isthmus.errors import MissingExtraError as MissingExtraError
from isthmus.errors import OutcomeError as OutcomeError
from isthmus.errors import UnsupportedError as UnsupportedError
from isthmus.evaluate import Band as Band
from isthmus.evaluate import Profile as Profile
from isthmus.evaluate import population as population
from isthmus.evaluate import profile as profile
from isthmus.graph import MinimaGraph as MinimaGraph
from isthmus.graph import load_graph as load_graph
from isthmus.graph import minima_graph as minima_graph
from isthmus.objective import Objective as Objective
from isthmus.objective.losses import L1 as L1
from isthmus.objective.losses import Ridge as Ridge
from isthmus.objective.named import CrossEntropy as CrossEntropy
from isthmus.params import Params as Params
from isthmus.paths import Curve as Curve
from isthmus.paths import LevelCurve as LevelCurve
from isthmus.paths import LevelLayer as LevelLayer
from isthmus.paths import Path as Path
from isthmus.paths import Segment as Segment
from isthmus.premises.sublevel import SublevelConditions as SublevelConditions
from isthmus.premises.sublevel import sublevel_conditions as sublevel_conditions
from isthmus.stability.dropout.measure import DropoutStability as DropoutStability
from isthmus.stability.dropout.measure import dropout_stability as dropout_stability
from isthmus.stability.dropout.pattern import PatternStability as PatternStability
from isthmus.stability.dropout.pattern import pattern_stability as pattern_stability
from isthmus.stability.noise.measure import NoiseStability as NoiseStability
from isthmus.stability.noise.measure import noise_stability as noise_stability
from isthmus.storage import load_alignment as load_alignment
from isthmus.storage import load_connection as load_connection
from isthmus.storage import load_params as load_params
from isthmus.storage import save as save
from isthmus.storage import save_alignment as save_alignment
from isthmus.storage import save_curve_npz as save_curve_npz
from isthmus.storage import save_params as save_params
from isthmus.storage.merged import save_like as save_like
from isthmus.structure import Group as Group
from isthmus.structure import Member as Member
from isthmus.structure import Structure as Structure
from isthmus.structure import derive_structure as derive_structure
from isthmus.theory import Theory as Theory
from isthmus.theory import theory as theory
from isthmus.training.fit import Recipe as Recipe
from isthmus.verdict import Verdict as Verdict
from isthmus.verdict import verdict as verdict

PROVISIONAL = frozenset(
    """
    AdapterRow AdapterStability adapter_stability low_rank_path
    AlignedLines StraightLines aligned_lines RotationMatching Renormalised
    BlockBarrier BlockBarriers block_barriers Contributions contributions TaskVectors task_vectors
    Separation separated Straightened straighten gap_by_width
    fast_geometric_ensemble save_like
    models.ACTIVATIONS models.Average models.EXTRACTORS models.Entry models.Extractor models.MODELS models.extract
    models.parameters_of data.DATASETS data.DataEntry data.numbers_of
    counterexamples.Found counterexamples.smallest_found
    """.split()
)
"""The public names that may change in any minor version; all others are stable (docs/compatibility.md)."""

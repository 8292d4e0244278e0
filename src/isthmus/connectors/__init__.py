"""The methods: frozen dataclasses of hyperparameters, one file each. A new one adds its line to METHODS."""

from isthmus.connectors.aligned import Aligned as Aligned
from isthmus.connectors.auto.method import Auto as Auto
from isthmus.connectors.base import Connection as Connection
from isthmus.connectors.base import Connector as Connector
from isthmus.connectors.base import Outcome as Outcome
from isthmus.connectors.connect import connect as connect
from isthmus.connectors.curves.method import Bezier as Bezier
from isthmus.connectors.curves.method import PolyChain as PolyChain
from isthmus.connectors.deep_linear.method import DeepLinear as DeepLinear
from isthmus.connectors.dropout import Dropout as Dropout
from isthmus.connectors.layer_wise import LayerWise as LayerWise
from isthmus.connectors.linear import Linear as Linear
from isthmus.connectors.mean_field import MeanField as MeanField
from isthmus.connectors.narrow import Narrow as Narrow
from isthmus.connectors.neb.method import AutoNEB as AutoNEB
from isthmus.connectors.noise_dropout import NoiseDropout as NoiseDropout
from isthmus.connectors.renormalised import Renormalised as Renormalised
from isthmus.connectors.strings.constrained import ConstrainedStringSampling as ConstrainedStringSampling
from isthmus.connectors.strings.sampling import StringSampling as StringSampling
from isthmus.connectors.sublevel import Sublevel as Sublevel
from isthmus.connectors.subnetwork.inner import Memorised as Memorised
from isthmus.connectors.subnetwork.inner import Separated as Separated
from isthmus.connectors.subnetwork.inner import Trained as Trained
from isthmus.connectors.subnetwork.method import Subnetwork as Subnetwork
from isthmus.connectors.two_layer_relu.method import TwoLayerReLU as TwoLayerReLU

METHODS: tuple[type[Connector], ...] = (
    Linear,
    Bezier,
    PolyChain,
    AutoNEB,
    LayerWise,
    Aligned,
    Renormalised,
    Dropout,
    NoiseDropout,
    Narrow,
    Subnetwork,
    MeanField,
    StringSampling,
    ConstrainedStringSampling,
    Sublevel,
    DeepLinear,
    TwoLayerReLU,
    Auto,
)
"""All connectors: laws, command line, and documentation run over this tuple."""

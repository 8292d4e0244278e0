"""The methods: frozen dataclasses of hyperparameters, one file each. A new one adds its line to METHODS."""

from isthmus.connectors.base import Connection as Connection
from isthmus.connectors.base import Connector as Connector
from isthmus.connectors.base import Outcome as Outcome
from isthmus.connectors.connect import connect as connect
from isthmus.connectors.dropout import Dropout as Dropout
from isthmus.connectors.linear import Linear as Linear
from isthmus.connectors.narrow import Narrow as Narrow
from isthmus.connectors.noise_dropout import NoiseDropout as NoiseDropout
from isthmus.connectors.subnetwork import Subnetwork as Subnetwork

METHODS: tuple[type[Connector], ...] = (Linear, Dropout, NoiseDropout, Narrow, Subnetwork)
"""All connectors: laws, command line, and documentation run over this tuple."""

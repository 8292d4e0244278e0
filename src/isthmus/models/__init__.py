"""Networks of the papers, small and plain, and the names the command line gives them."""

from isthmus.models.conv5 import conv5 as conv5
from isthmus.models.extractors import EXTRACTORS as EXTRACTORS
from isthmus.models.extractors import Extractor as Extractor
from isthmus.models.extractors import extract as extract
from isthmus.models.lstm import LanguageModel as LanguageModel
from isthmus.models.mean_field import Average as Average
from isthmus.models.mean_field import mean_field as mean_field
from isthmus.models.mean_field import mean_field_init as mean_field_init
from isthmus.models.names import MODELS as MODELS
from isthmus.models.names import Entry as Entry
from isthmus.models.names import by_name as by_name
from isthmus.models.names import parameters_of as parameters_of
from isthmus.models.networks import ACTIVATIONS as ACTIVATIONS
from isthmus.models.networks import convnet as convnet
from isthmus.models.networks import mlp as mlp
from isthmus.models.networks import seeded as seeded
from isthmus.models.networks import vgg11 as vgg11
from isthmus.models.train_mean_field import mean_field_trials as mean_field_trials
from isthmus.models.train_mean_field import train_mean_field as train_mean_field

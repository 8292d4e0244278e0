"""Data sets of the papers, from files already on this machine; nothing is downloaded."""

from isthmus.data.dataset import Dataset as Dataset
from isthmus.data.load import DATASETS as DATASETS
from isthmus.data.load import DataEntry as DataEntry
from isthmus.data.load import load as load
from isthmus.data.load import numbers_of as numbers_of

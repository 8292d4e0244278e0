"""Proofs that the loss stays low on the whole continuous path."""

from isthmus.certify.certify import Certificate as Certificate
from isthmus.certify.certify import certify as certify

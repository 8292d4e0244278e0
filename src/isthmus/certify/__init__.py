"""Proofs that the loss stays low on the whole continuous path."""

from isthmus.certify.certificate import Certificate as Certificate
from isthmus.certify.certificate import SegmentCertificate as SegmentCertificate
from isthmus.certify.certify import certify as certify
from isthmus.certify.certify import check_search as check_search
from isthmus.certify.verify import verify_certificate as verify_certificate

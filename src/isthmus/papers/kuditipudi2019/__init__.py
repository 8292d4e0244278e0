"""Kuditipudi et al. 2019."""

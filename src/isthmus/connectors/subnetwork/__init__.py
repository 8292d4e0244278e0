"""Paths through sparse subnetworks."""

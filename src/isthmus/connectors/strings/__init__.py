"""Dynamic String Sampling."""

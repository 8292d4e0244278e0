"""Trained curves: control points between the ends, trained where the loss along the curve is high."""

"""The nudged elastic band, with pivots put in where the loss asks for them (AutoNEB)."""

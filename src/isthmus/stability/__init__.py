"""Which low-loss paths can exist: stability of trained networks under dropping units."""

"""Which unit of one network is which of another: permutations that keep the function, found and applied."""

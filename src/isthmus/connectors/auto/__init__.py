"""The cheapest way to an excess: paths tried in the order of their cost, each left as soon as it is seen to be high."""

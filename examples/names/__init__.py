"""What the examples on names share: the names, a network, its training and their display."""

"""What the glyph examples share: data, network, training, retrieval metrics and their display."""

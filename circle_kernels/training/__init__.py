"""What lets a training step see more embeddings than a backbone's activations leave memory for."""

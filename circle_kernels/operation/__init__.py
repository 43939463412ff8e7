"""The fused operation: a batch and what is done with it, eager and as registered ops."""

"""From log-sum-exps and their gradients to those of the embeddings."""

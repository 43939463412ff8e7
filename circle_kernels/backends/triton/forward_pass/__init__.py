"""From embeddings to both log-sum-exps of each row."""

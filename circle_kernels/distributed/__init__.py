"""Many processes: which of them share a batch, and what they exchange."""

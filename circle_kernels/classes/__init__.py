"""The losses with class labels, and what training many classes needs."""

"""Results files, and what is written from them."""

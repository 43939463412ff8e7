"""The pair formulas in Triton, and what kernels are told of them."""

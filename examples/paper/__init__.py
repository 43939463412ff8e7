"""The figures of the circle loss paper (Sun et al., CVPR 2020), from this package."""

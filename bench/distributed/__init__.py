"""``python -m bench distributed``: a batch shared by several processes, measured and modelled."""

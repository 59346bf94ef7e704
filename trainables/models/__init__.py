"""Builds models.

`build` builds a variant by name, `cnns` are the baseline networks, `scaling` scales B0,
`pretrained` loads weights, `cost` counts parameters and operations.
"""

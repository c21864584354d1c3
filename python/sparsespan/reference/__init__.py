"""NumPy float64 twins of every op: the specification that the docstrings cite.

Slow and plain on purpose. The modules and functions carry the names of the package's own.
"""

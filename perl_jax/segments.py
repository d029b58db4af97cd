"""Numbers of segments: which tokens of a row attend to which.

A token attends to those of its own segment and of the prefix of that segment;
segment 0 is padding. Segments PREFIX g + 1, PREFIX g + 2, ... have the prefix
PREFIX g, as responses have their prompt; those of g = 0 have none.
"""

PREFIX = 2**16

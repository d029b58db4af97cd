"""One file for each kind of batch: how its rows are encoded and collated."""

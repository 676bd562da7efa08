"""A run in the terminal while it is being written: ``python -m propkit watch run.zarr``."""

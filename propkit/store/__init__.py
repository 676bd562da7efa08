"""The run: written in place with one atomic commit, read lazily by xarray, while it is written and after a crash."""

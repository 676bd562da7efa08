"""What is behind `propkit.measure` and `propkit.compatibility`: one pass over one batch, and what to make of it."""

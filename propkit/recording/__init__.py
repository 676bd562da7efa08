"""From values on their device to rows in the run: when to measure, combining, flushing in the background."""

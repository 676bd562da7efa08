"""One page about a run: verdicts, figures, tables and where the numbers come from, in one HTML file."""

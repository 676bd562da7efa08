"""Hooks in, hooks out: from a module's calls to the values of its probes, in eager and in compiled models."""

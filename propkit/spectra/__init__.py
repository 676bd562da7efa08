"""The mathematics of spectra, usable without any model."""

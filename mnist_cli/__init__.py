"""An experiment runner for small image classifiers."""

__version__ = "0.1.0"

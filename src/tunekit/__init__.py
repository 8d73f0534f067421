"""tunekit: fine-tuning that accounts for every row, refuses faulty data and says whether it helped."""

__version__ = "0.1.0"

__all__ = ["__version__"]

"""tunekit: fine-tuning that accounts for every row, proves every artefact and answers at once."""

__version__ = "0.1.0"

__all__ = ["__version__"]

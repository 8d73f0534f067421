"""Making a finished model smaller or plainer, with a proof that it is still the same model."""

"""What kinds of quantization have in common."""

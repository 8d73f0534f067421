"""Attention and loss that compute only what is needed, registered through the libraries' own interfaces."""

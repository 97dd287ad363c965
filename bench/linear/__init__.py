"""Cross entropy of a linear layer against torch's, and against its matrix products alone."""

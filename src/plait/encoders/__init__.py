"""What transformers' encoders are inside: families, layers, heads, modes; no other room looks."""

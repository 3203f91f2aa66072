"""The product: what the service promises, one chapter a file."""

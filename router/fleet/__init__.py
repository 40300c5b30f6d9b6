"""Which replicas exist, how they are, and what this router has sent them."""

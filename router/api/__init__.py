"""The endpoint agents talk to: one request from its bytes to its answer."""

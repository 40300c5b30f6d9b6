"""Offline what-if: the router's own routing code over simulated replicas, in virtual time."""

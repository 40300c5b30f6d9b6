"""`prefix-router loadtest compare`: routers and policies on one fleet with the same requests, in turn, repeated."""

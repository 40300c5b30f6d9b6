"""The shared index in Redis or Valkey: written by agents, mirrored (or asked) by routers. Start at layout.py."""

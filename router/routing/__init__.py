"""Which replica a request goes to: one small policy type each, pure functions over a snapshot."""

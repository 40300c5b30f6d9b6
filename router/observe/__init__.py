"""What happened and why: metrics, receipts, access log."""

"""Block hash -> replicas: what each replica holds, kept true by KV events."""

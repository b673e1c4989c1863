"""The two use cases, enter and upload; they meet only in the ledger."""

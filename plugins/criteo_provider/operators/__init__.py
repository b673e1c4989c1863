"""Tasks that take people from the ledger to Criteo."""

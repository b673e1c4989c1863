"""What waits in the triggerer: one look a second, no rows, no blocking call."""

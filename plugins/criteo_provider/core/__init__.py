"""The pure floor: standard library only, no clock, no I/O."""

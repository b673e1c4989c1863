"""The benchmark: what the promises about speed cost on this machine, beside what one would write instead."""

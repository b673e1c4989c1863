"""The sandbox Criteo keeps its promises."""

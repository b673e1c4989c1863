"""Canvases: read from YAML, checked in plain words, handed on as plain objects."""

"""Talking to Criteo: what goes over the wire, the access token, the calls, and one check of it all."""

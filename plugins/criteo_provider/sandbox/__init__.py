"""A Criteo that runs on a laptop: strict, in memory, and depending on nothing else of this package.

``state`` is the world (applications, advertisers, segments, contact lists), ``app.create_app(world)`` its
HTTP face, ``serve.serve`` puts that on a port, ``running.running_sandbox`` does so for a test, ``admin``
moves the clock and throws faults. What is known of the real API decides; where nothing is known, the
stricter reading does.
"""

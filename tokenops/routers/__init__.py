"""Routers: two streams of tokens around one layer, ``split`` before it and ``merge`` after it."""

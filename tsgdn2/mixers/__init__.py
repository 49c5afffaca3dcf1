"""Sequence mixers behind one interface: tokens in, tokens out, the whole memory in an explicit state.

`contract` says what a mixer is, `registry` makes one by name; every other file is one mixer or one family of them.
"""

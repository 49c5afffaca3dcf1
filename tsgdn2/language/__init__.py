"""The language model: the same blocks as the forecaster's, between an embedding and a vocabulary.

`config` fixes the shape, `model` is the network, `generation` decodes on the recurrent state, `cost` counts weights,
state and operations before anything is trained.
"""

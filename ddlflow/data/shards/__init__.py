"""Shards -> order -> batches.

statistics.py  exact mean and variance of shards, merged in a fixed order
shard.py       one file of rows as tensors: written once, mapped without a copy
verified.py    a shard's bytes are those that were written, seen once a host
manifest.py    a data set's shards, and all that is known of them
order.py       which row comes when: a pure function of rows, seed and epoch
batches.py     the rows in that order, on the device
"""

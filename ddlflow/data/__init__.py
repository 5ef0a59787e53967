"""Sources -> encoded columns -> shards and a manifest -> order -> batches.

    files.py       what lies at a location: one file, a glob, a folder, an fsspec URL
    text.py        CSV and JSON lines, cut at line ends
    columnar.py    Parquet and Arrow, cut at row groups and record batches
    source.py      the four formats as one: open_source, ranges, read
    columns.py     which column means what, and how its values become numbers
    split.py       which row is train, validation or test: exact counts, no global shuffle
    statistics.py  exact mean and variance of shards, merged in a fixed order
    shard.py       one file of rows as tensors: written once, mapped without a copy
    storage.py     whole files or none: temporary name, then rename
    manifest.py    the list of a data set's shards and all that is known of them
    scan.py        the first pass: what every row's place depends on
    prepare.py     the plan and the second pass: the shards

Everything here runs where pyarrow, numpy and fsspec are installed; no engine, no PyTorch.
"""

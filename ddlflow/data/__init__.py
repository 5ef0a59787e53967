"""Sources -> encoded columns -> shards and a manifest -> order -> batches.

    files.py       what lies at a location: one file, a glob, a folder, an fsspec URL
    dialect.py     what the pipeline says of reading text
    quotes.py      where rows of CSV end: not inside quotes
    encoding.py    any encoding as UTF-8
    jsonarray.py   a JSON array as JSON lines
    lines.py       the bytes of a text file as whole rows, and where it is cut
    text.py        CSV, parsed block by block
    jsonl.py       JSON lines: a block, and the columns of a whole file
    misfit.py      one sentence for what a parser could not read, with the line
    stray.py       text where numbers are meant
    noted.py       what a user should know of how a source was read
    layout.py      what one file says of itself
    columnar.py    Parquet and Arrow, cut at row groups and record batches
    schema.py      names and types of a source's columns, the same in all its files
    source.py      the four formats as one: open_source, ranges, read
    derive.py      columns that are computed from others (derive_sql.py is their language,
                   derive_dates.py takes dates apart)
    roles.py       which column is for what, by names and types
    columns.py     how a column's values become numbers; part of the trained model
    matrix.py      from columns to rows
    keep.py        which rows are kept: the condition, missing and infinite values
    losses.py      what was left out or replaced, in words
    split.py       which row is train, validation or test: exact counts, no global shuffle
    statistics.py  exact mean and variance of shards, merged in a fixed order
    storage.py     whole files or none: temporary name, then rename
    shard.py       one file of rows as tensors: written once, mapped without a copy
    verified.py    a shard's bytes are those that were written, seen once a host
    manifest.py    a data set's shards, and all that is known of them
    scan.py        the first pass: what every row's place depends on
    plan.py        what each range has to write
    pieces.py      a range's rows in the passes after the first: kept, with class and split
    dealing.py     which part of the training rows, and so which fold, a row is in
    times.py       times in order, cut into blocks out of core
    tally.py       the pass for folds by a column: its groups or times
    folds.py       what each fold trains on and is validated on
    write.py       the last pass: shards
    prepare.py     the passes in turn, and the manifest
    order.py       which row comes when: a pure function of rows, seed and epoch
    batches.py     the rows in that order, on the device

And the sources that are made or fetched:

    made.py        made rows as Parquet files, by any number of workers
    blocks.py      the block of rows: what one stream of random numbers gives
    parts.py       Parquet files that are whole or not there
    collider.py    HIGGS-like collisions (collision.py draws them, masses.py knows the columns)
    particles.py   tracks of five species: several classes, categories, missing values
    higgs.py       UCI's HIGGS (download.py fetches it)
"""

"""Sources: tables of typed columns, some of them computed, read range by range.

source.py         what every kind of source gives: the Protocol; ranges, read
opening.py        which kind a location is: open_source
table_files.py    the kind that is files: Parquet, Arrow, CSV, JSON
exported.py       the kind that is a table of Spark's or Dask's, exported to the storage
export_part.py    a partition of one, as a worker writes it
listing.py        what files lie at a location: one, a glob, a folder, an fsspec URL
files.py          a file, and how its bytes are read
columnar.py       Parquet and Arrow, cut at row groups and record batches
dialect.py        what the pipeline says of reading text
encoding.py       any encoding as UTF-8
jsonarray.py      a JSON array as JSON lines
csv_rows.py       where rows of CSV end: not inside quotes
row_blocks.py     the bytes of a text file as whole rows, and where it is cut
text.py           CSV, parsed block by block
jsonl.py          JSON lines: a block, and the columns of a whole file
converted.py      text that was parsed, kept as Parquet
parse_errors.py   one sentence for what a parser could not read, with the line
mixed_types.py    text where numbers are meant
source_notes.py   what a user should know of how a source was read
file_schema.py    what one file says of itself
schema.py         names and types of a source's columns, the same in all its files
trained_types.py  the types that columns had in training, for later sources
frames.py         tables that lie in memory: pandas, Polars and Arrow
derive.py         columns that are computed from others (derive_sql.py is their language,
                  derive_dates.py takes dates apart; derive_rows.py computes)
"""

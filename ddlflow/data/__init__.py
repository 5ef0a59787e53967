"""Sources -> encoded columns -> shards and a manifest -> order -> batches.

sources/       files of any format as tables of typed columns
roles.py       which column is for what, by names and types
columns.py     how a column's values become numbers; part of the trained model
convert.py     a column of another type than the model was trained on
numbers.py     a table's columns as numbers; offsets.py: what is taken off them before
matrix.py      from columns to rows
shards/        what is read while training: shards, order, batches
prepare/       the passes from sources to shards
samples/       sources that are made or fetched
"""

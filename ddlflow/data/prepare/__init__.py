"""Sources -> shards: the passes over the rows, and which row is for what.

row_filter.py       which rows are kept: the condition, missing and infinite values
left_out.py         what was left out or replaced, in words
split.py            which row is train, validation or test: exact counts, no global shuffle
small_ranges.py     small neighbours are one task, and share shards
scan_task.py        a task of the first pass, and what it finds
scan.py             the first pass: what every row's place depends on
scan_totals.py      what all scans found, added up as they come
vocabulary.py       the values of categories: counted apart, merged out of core
range_plan.py       what each task has to write
piece_rows.py       a task's rows in the passes after the first: kept, with class and split
fold_assignment.py  which part of the training rows, and so which fold, a row is in
times.py            times in order, cut into blocks out of core
fold_keys.py        the pass for folds by a column: its groups or times
folds.py            what each fold trains on and is validated on
write.py            the last pass: shards
write_tensors.py    tensors and sequences on their way into shards
converted_sources.py  text that is parsed once, for all passes and data sets
prepare.py          the passes in turn, and the manifest
row_splits.py       which split each row of a source went to
unresolved.py       columns whose values the model can hardly tell apart
"""

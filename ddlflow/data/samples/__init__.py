"""Sources that are made or fetched.

generators.py  made rows as Parquet files, by any number of workers
blocks.py      the block of rows: what one stream of random numbers gives
parts.py       Parquet files that are whole or not there
collider.py    HIGGS-like collisions (collision.py draws them, masses.py knows the columns)
particles.py   tracks of five species: several classes, categories, missing values
higgs.py       UCI's HIGGS (download.py fetches it)
"""

"""Where results lie, and who holds what there.

store.py         the Protocol; folder.py, objects.py: a folder, a part of a bucket
object_client.py the client of buckets: its credentials, patience and errors
cache.py         a host's copies of what lies in a bucket
claims.py        who holds what, changed whole; object_claims.py: in a bucket
files.py         whole files or none: temporary name, then rename
site_storage.py  the storage of a site
owner.py         whose a name is: a process, on a host
entries.py       what stands in a folder for each of many owners
lease.py         one command at a time in one place
"""

"""The state backend ``rocksdb``: keyed state on the TaskManager's disk, in RocksDB.

``encoding``   what rows are made of
``database``   RocksDB itself: opening, memory, folders, freezing
``values``     the mappings that operators work on: a cache of Python objects over rows
``tables``     the tables of values, lists and maps
``states``     list and map states that never read more than they need
``backend``    all of an operator's state, its snapshots and restores
"""

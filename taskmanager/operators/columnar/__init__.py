"""Operators that aggregate Arrow columns, without a loop over records.

columns         the columns an aggregation needs, out of rows or Arrow batches
accumulators    the arithmetic: lift records, merge them by key, finish
pre_aggregate   before the shuffle: what of a batch can be merged already
window          after it: windows, lateness, firing
running         aggregates so far, for every record
"""

"""From a program to a JobGraph: transformations, validation, chaining and pickling.

``generator.build_job_graph`` is the whole compiler; ``job_graph`` and ``specs`` are what it
produces.
"""

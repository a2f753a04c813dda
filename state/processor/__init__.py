"""What is behind ``dataflow.state_processor``: state of savepoints outside of jobs.

``reading``   operators, key groups and entries of a savepoint or checkpoint
``changing``  what becomes of the state of one operator
``writing``   a savepoint with other state
"""

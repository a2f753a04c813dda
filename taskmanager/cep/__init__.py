"""How patterns are matched: a pattern becomes a nondeterministic automaton, an NFA.

``compiler`` turns the chain of parts into ``states`` and their transitions, ``facts`` evaluates the
user's conditions, ``matching`` holds what is remembered of one key (partial matches, which share
their events), and ``nfa`` moves it on by one event or to a point in time. Nothing here knows of
keys, streams or watermarks: that is ``taskmanager.operators.cep``.
"""

"""What windows are made of; programs import all of it from ``dataflow.datastream.window``."""

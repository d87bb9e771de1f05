"""Other people's entry points over ours. Nothing is imported from here unless it is asked for by name."""

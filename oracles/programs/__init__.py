"""Dynamic programs: hypergraphs, and the polytopes of their derivations."""

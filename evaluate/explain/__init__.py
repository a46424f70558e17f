"""One prediction explained: which concepts made it, where they are, and what little change would make it another."""

"""One file a command: options in, a call of the floor below, results and paths out."""

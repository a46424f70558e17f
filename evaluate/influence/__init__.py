"""Do directions move the network's predictions, and by more than chance? RCAV, its null directions, and what follows."""

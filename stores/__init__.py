"""What is on disk between the stages: activations, directions, tables. Knows no network and no method."""

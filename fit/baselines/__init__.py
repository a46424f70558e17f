"""Other ways to find directions, under the same contract and scored by the same code."""

"""One file per claim: it measures on this machine, prints the ratio, and fails if the claim does not hold."""

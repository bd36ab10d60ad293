"""One file per claim. Each measures on this machine, prints the ratio it is about, and fails if the claim does not hold."""

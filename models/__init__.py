"""Networks, geometry and losses of the paper (Sec. 3); torch only."""

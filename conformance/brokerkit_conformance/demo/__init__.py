"""`brokerkit demo`: what guarantees are worth, in dollars, and who says so."""

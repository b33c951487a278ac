"""What a pruned network has to beat, and what it may be: trained from scratch, or a ticket."""

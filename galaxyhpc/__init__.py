"""Which symmetry group and which architecture classify galaxies best, and stay best when conditions worsen."""

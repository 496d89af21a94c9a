"""The proof of the power protocol: a seeded model of sites, a judge of its own, and planted bugs."""

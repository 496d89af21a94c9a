"""What agents say: inventories, samples, meters, reports, and the orders they are given."""

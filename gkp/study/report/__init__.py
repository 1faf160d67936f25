"""What people read: figures, tables, the README, notebooks."""

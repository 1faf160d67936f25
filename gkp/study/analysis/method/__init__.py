"""What the records say of the method itself: its choices one by one, its price, its speed."""

"""What the records say: statistics and tables, without figures and without computing anything again."""

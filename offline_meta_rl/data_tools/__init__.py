"""Tools for datasets: look at them, check them, convert, merge and split them."""

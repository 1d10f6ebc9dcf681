"""Result files, and the tables and pictures made of them."""

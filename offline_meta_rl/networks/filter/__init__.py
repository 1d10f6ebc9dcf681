"""The variational filter over images and rewards."""

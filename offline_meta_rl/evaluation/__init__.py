"""Rolling policies out, and measuring them under a protocol."""

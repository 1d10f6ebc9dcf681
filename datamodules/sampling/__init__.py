"""Which rows make up a batch, and how they are gathered."""

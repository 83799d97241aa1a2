"""Helpers shared by several packages; none of them is public."""

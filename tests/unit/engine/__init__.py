"""The engine on a virtual site."""

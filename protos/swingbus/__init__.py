"""The contract between Swingbus programs: generated messages and the few pure words both sides share."""

__version__ = "0.1.0"

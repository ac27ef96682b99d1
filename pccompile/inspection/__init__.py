"""Views of a program. Inspection reads and never writes."""

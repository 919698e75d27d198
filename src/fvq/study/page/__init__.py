"""What the page is made of: its templates by section, its style and its script, and what they need in Python."""

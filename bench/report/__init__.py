"""``python -m bench report``."""

"""Figures, one module per subject; `style` says how they look."""

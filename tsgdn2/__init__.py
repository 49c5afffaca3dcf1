"""tsgdn2."""

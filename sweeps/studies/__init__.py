"""The built-in studies, one a module."""

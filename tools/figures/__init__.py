"""Figures, tables and sounds of the site, made from the code and the bundled clips: docs/made.

python -m tools.figures [NAMES]     # or make figures; none of it is in git
"""

"""What was measured, for people: a bundle's report as one HTML page (jinja2), and solvers' curves as a PNG (matplotlib).

Both come with `pip install 'edgegen[report]'` and are imported inside.
"""

"""Pictures of what was measured. Needs matplotlib (`pip install 'edgegen[report]'`), which is imported inside."""

"""Engines that run components, one folder each: where quantization goes, how a component is opened, run and timed."""

"""The demonstration: real text that is already on the machine, a real encoder, sources fine-tuned and merged."""

from plait.demo.run import demo

__all__ = ["demo"]

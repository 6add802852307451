"""Weave several fine-tuned language models into one."""

"""Agents that ship with Agent OS: OpenAI-compatible endpoints, Python functions, echo."""
